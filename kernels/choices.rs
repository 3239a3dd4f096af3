//! What was chosen to do each problem, for whoever asks to see it.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::LazyLock;

use parking_lot::Mutex;
use smidgen_runtime::device::Sms;
use smidgen_runtime::launch::KernelKey;

/// Prints a choice to standard error where the environment has `SMIDGEN_PRINT_CONFIGS=1`: once for each problem, SM count and choice, which are several where problems
/// of one key differ in strides or alignment. Elsewhere it costs a branch, and `choice` is not asked.
pub(crate) fn print_choice<Choice: Display>(sms: Sms, choice: impl FnOnce() -> (KernelKey, Choice, u64)) {
    static WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("SMIDGEN_PRINT_CONFIGS").is_some_and(|value| value == "1"));
    static PRINTED: LazyLock<Mutex<Printed>> = LazyLock::new(Mutex::default);
    if *WANTED {
        let (key, choice, tiles) = choice();
        if let Some(line) = PRINTED.lock().line(key, sms, choice, tiles) {
            eprintln!("{line}");
        }
    }
}

/// The lines so far.
#[derive(Debug, Default)]
struct Printed(HashSet<String>);

impl Printed {
    /// The line of a choice; none if it was printed before.
    fn line(&mut self, key: KernelKey, sms: Sms, choice: impl Display, tiles: u64) -> Option<String> {
        let line = format!("{key} at {sms} SMs: {choice}, {tiles} tiles");
        self.0.insert(line.clone()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use smidgen_runtime::launch::KernelName;

    use super::*;

    #[test]
    fn each_choice_for_a_problem_is_a_line_and_is_printed_once() {
        const NAME: KernelName = KernelName::new("gemm");
        let mut printed = Printed::default();
        let mut line = |sms, choice| printed.line(KernelKey::new(NAME, [8, 64, 128]), Sms(sms), choice, 2);
        assert_eq!(line(132, "Skinny8x32").as_deref(), Some("gemm[8x64x128]f16 at 132 SMs: Skinny8x32, 2 tiles"));
        assert_eq!(line(132, "Skinny8x32"), None);
        assert!(line(66, "Skinny8x32").is_some());
        // The same problem with rows that lie otherwise.
        assert_eq!(line(132, "Unaligned").as_deref(), Some("gemm[8x64x128]f16 at 132 SMs: Unaligned, 2 tiles"));
    }
}
