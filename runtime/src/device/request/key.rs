//! Kernel keys: what the profiler measures and the runtime looks up. A key is a kernel's name, shape and precision; on the launch path it
//! is compared by a 64-bit fingerprint whose string part is hashed when the program is compiled.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// FNV-1a, 64 bits (Fowler, Noll and Vo; parameters from draft-eastlake-fnv).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

const fn fnv(text: &[u8], mut hash: u64) -> u64 {
    let mut at = 0;
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(FNV_PRIME);
        at += 1;
    }
    hash
}

/// The name of a kernel as profiles know it, hashed at compile time: make it a `const`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelName {
    text: &'static str,
    hash: u64,
}

impl KernelName {
    /// A name of letters, digits, underscores, dots and dollar signs, all ASCII: whatever an entry point may be called.
    ///
    /// # Panics
    /// On any other text, which a profile could not be read back with. A `const` of it does not compile.
    pub const fn new(text: &'static str) -> Self {
        assert!(Self::is_name(text), "a kernel's name consists of letters, digits, underscores, dots and dollar signs");
        Self { text, hash: fnv(text.as_bytes(), FNV_OFFSET) }
    }

    /// Whether a kernel may be called `text`.
    pub const fn is_name(text: &str) -> bool {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if !(bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'_' | b'.' | b'$')) {
                return false;
            }
            at += 1;
        }
        !bytes.is_empty()
    }

    /// The name as text.
    pub const fn text(self) -> &'static str {
        self.text
    }
}

/// The element type a kernel computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// FP16 operands, FP32 accumulation.
    #[default]
    F16,
    /// FP32 throughout.
    F32,
}

impl Precision {
    fn text(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// Kernel name, shape (at most 6 extents) and precision, written `gemm_bias[1024x768x3072]f16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelKey {
    name: KernelName,
    shape: [u32; 6],
    rank: u8,
    precision: Precision,
}

impl KernelKey {
    /// A key for an FP16 kernel. Extents beyond six do not compile.
    pub const fn new<const RANK: usize>(name: KernelName, extents: [u32; RANK]) -> Self {
        const { assert!(RANK <= 6, "a kernel key holds at most 6 extents") };
        let mut shape = [0; 6];
        let mut at = 0;
        while at < RANK {
            shape[at] = extents[at];
            at += 1;
        }
        Self { name, shape, rank: RANK as u8, precision: Precision::F16 }
    }

    /// As [`new`](Self::new), for a shape known only at run time; `None` beyond six extents.
    pub fn from_extents(name: KernelName, extents: &[u32]) -> Option<Self> {
        let mut shape = [0; 6];
        shape.get_mut(..extents.len())?.copy_from_slice(extents);
        Some(Self { name, shape, rank: extents.len() as u8, precision: Precision::F16 })
    }

    /// The same key at another precision.
    pub const fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The kernel's name.
    pub const fn name(&self) -> &'static str {
        self.name.text
    }

    /// The shape's extents.
    pub fn shape(&self) -> &[u32] {
        &self.shape[..self.rank as usize]
    }

    /// The number by which keys are compared on the launch path.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.name.hash, self.shape(), self.precision)
    }
}

impl fmt::Display for KernelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.name.text)?;
        for (at, extent) in self.shape().iter().enumerate() {
            write!(f, "{}{extent}", if at > 0 { "x" } else { "" })?;
        }
        write!(f, "]{}", self.precision.text())
    }
}

/// A kernel key as a 64-bit number: equal for equal keys, whether built from a [`KernelKey`] or parsed from its text in a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    fn of(name_hash: u64, shape: &[u32], precision: Precision) -> Self {
        let mut hash = name_hash;
        for &extent in shape {
            hash = (hash ^ u64::from(extent)).wrapping_mul(FNV_PRIME).rotate_left(29);
        }
        Self((hash ^ ((shape.len() as u64) << 8) ^ precision as u64).wrapping_mul(FNV_PRIME))
    }
}

/// A text that is no kernel key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kernel key; one reads like `gemm_bias[1024x768x3072]f16`")]
pub struct ParseKeyError(String);

impl FromStr for Fingerprint {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let parse = || {
            let (name, rest) = text.split_once('[')?;
            let (extents, precision) = rest.split_once(']')?;
            let precision = [Precision::F16, Precision::F32].into_iter().find(|p| p.text() == precision)?;
            let shape = if extents.is_empty() {
                Vec::new()
            } else {
                extents.split('x').map(|extent| extent.parse().ok()).collect::<Option<Vec<u32>>>()?
            };
            (shape.len() <= 6 && !name.is_empty()).then(|| Self::of(fnv(name.as_bytes(), FNV_OFFSET), &shape, precision))
        };
        parse().ok_or_else(|| ParseKeyError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_read_back_from_its_text_has_the_same_fingerprint() {
        const NAME: KernelName = KernelName::new("gemm_bias");
        for key in [
            KernelKey::new(NAME, []),
            KernelKey::new(NAME, [1]),
            KernelKey::new(NAME, [1024, 768, 3072]),
            KernelKey::new(NAME, [1024, 768, 3072]).with_precision(Precision::F32),
        ] {
            assert_eq!(key.to_string().parse(), Ok(key.fingerprint()), "{key}");
        }
    }

    #[test]
    fn a_name_that_no_profile_could_hold_is_none() {
        for (text, is_name) in
            [("gemm_bias_8x64", true), ("", false), ("Gemm$1.v2", true), ("gemm[8]", false), ("gemm-bias", false), ("naïve", false)]
        {
            assert_eq!(KernelName::is_name(text), is_name, "{text}");
        }
    }

    #[test]
    fn keys_that_differ_in_one_place_have_different_fingerprints() {
        let base = KernelKey::new(KernelName::new("gemm"), [8, 16]);
        for other in [
            KernelKey::new(KernelName::new("gemv"), [8, 16]),
            KernelKey::new(KernelName::new("gemm"), [16, 8]),
            KernelKey::new(KernelName::new("gemm"), [8, 16, 0]),
            base.with_precision(Precision::F32),
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint(), "{other}");
        }
    }

    #[test]
    fn a_shape_known_at_run_time_makes_the_same_key_and_beyond_six_extents_none() {
        const NAME: KernelName = KernelName::new("gemm");
        assert_eq!(KernelKey::from_extents(NAME, &[8, 16]), Some(KernelKey::new(NAME, [8, 16])));
        assert_eq!(KernelKey::from_extents(NAME, &[]), Some(KernelKey::new(NAME, [])));
        assert_eq!(KernelKey::from_extents(NAME, &[1; 7]), None);
    }

    #[test]
    fn text_that_is_no_key_is_named_in_the_error() {
        for text in ["", "gemm", "gemm[8x]f16", "gemm[8]f64", "[8]f16", "gemm[1x2x3x4x5x6x7]f16"] {
            let error = text.parse::<Fingerprint>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")));
        }
    }
}
