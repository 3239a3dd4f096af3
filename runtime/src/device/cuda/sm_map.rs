//! Which SMs each TPC has, by the numbers that kernels read in `%smid`. Grants name SMs by these numbers, and no driver call tells them: the
//! order in which the driver's split hands out TPCs is not theirs (docs/decisions/0005). So kernels read them, inside partitions.
//!
//! Every TPC gets a code, its number + 1, and every bit of the codes a partition of the TPCs that have the bit set. The bits whose partitions an SM
//! was seen in spell the code of its TPC: 7 partitions tell 66 TPCs apart, where one for each TPC would take ten times as long.

use std::time::{Duration, Instant};

use cudarc::driver::sys::CUdevice;

use super::library::Libraries;
use super::partition::Partitions;
use super::status::tolerate;
use super::stream::Streams;
use super::{driver, memory};
use crate::device::{DeviceError, DevicePtr, Launch, Params, PartitionId, Sms, TilesArg};
use crate::partition::TpcSet;

/// One bit per SM in `%smid` order, 32 to a word.
type SmMask = [u32; 8];

/// SMs that a mask can name.
const MASK_SMS: usize = size_of::<SmMask>() * 8;

/// Sets the bit of the SM that a block runs on in the mask at `marks`, and keeps the SM for 20,000 cycles, about 10 us, so that later blocks go
/// elsewhere.
const MARK_SMS_PTX: &str = r".version 7.0
.target sm_80
.address_size 64

.visible .entry smidgen_mark_sms(.param .u64 marks, .param .align 8 .b8 tiles[24])
{
    .reg .pred %p;
    .reg .b32 %sm, %word, %bit;
    .reg .b64 %marks, %offset, %start, %now, %spent;
    mov.u64 %start, %clock64;
    mov.u32 %sm, %smid;
    setp.ge.u32 %p, %sm, 256;
    @%p bra stay;
    ld.param.u64 %marks, [marks];
    cvta.to.global.u64 %marks, %marks;
    shr.u32 %word, %sm, 5;
    mul.wide.u32 %offset, %word, 4;
    add.u64 %marks, %marks, %offset;
    and.b32 %bit, %sm, 31;
    shl.b32 %bit, 1, %bit;
    red.global.or.b32 [%marks], %bit;
stay:
    mov.u64 %now, %clock64;
    sub.u64 %spent, %now, %start;
    setp.lt.u64 %p, %spent, 20000;
    @%p bra stay;
    ret;
}
";

/// The kernel in [`MARK_SMS_PTX`].
const MARK_SMS: &str = "smidgen_mark_sms";

/// Blocks launched for each SM: two waves, since no SM holds more than 32 blocks at once (CUDA C++ Programming Guide, "Technical Specifications
/// per Compute Capability").
const BLOCKS_PER_SM: u32 = 64;

/// How long to launch again while other kernels leave some SM no room for a block. Kernels that run longer than this are rare.
const PATIENCE: Duration = Duration::from_secs(2);

/// The SMs of each TPC.
#[derive(Debug, PartialEq, Eq)]
pub struct SmMap {
    of_tpc: Vec<SmMask>,
}

impl SmMap {
    /// Measures the map in the current context, by kernels on streams of this priority number. They wait for room beside what else runs.
    #[tracing::instrument(level = "debug", name = "measure SM numbers", skip_all)]
    pub fn measure(device: CUdevice, partitions: &Partitions, priority: i32) -> Result<Self, DeviceError> {
        let split = partitions.split()?;
        let tpcs = split.groups();
        let marker = SmMarker::new(device, partitions, priority)?;
        let marks: Vec<_> = partitions_by_bit(tpcs).map(|tpcs| marker.sms_reached(tpcs)).collect::<Result<_, _>>()?;
        Self::decode(&marks, tpcs, split.sms_per_group())
    }

    /// The map that `marks`, the SMs of each of [`partitions_by_bit`], spell.
    fn decode(marks: &[SmMask], tpcs: u16, sms_per_tpc: Sms) -> Result<Self, DeviceError> {
        let mut of_tpc = vec![SmMask::default(); usize::from(tpcs)];
        for sm in 0..MASK_SMS {
            let (word, bit) = (sm / 32, 1 << (sm % 32));
            let code = marks.iter().rev().fold(0, |code, mask| code << 1 | usize::from(mask[word] & bit != 0));
            // Code 0 is that of an SM in no partition.
            if let Some(mask) = code.checked_sub(1).and_then(|tpc| of_tpc.get_mut(tpc)) {
                mask[word] |= bit;
            }
        }
        for (tpc, mask) in (0..).zip(&of_tpc) {
            check_count(TpcSet::range(tpc, tpc + 1), sms_per_tpc, mask)?;
        }
        Ok(Self { of_tpc })
    }

    /// The SMs of `tpcs`.
    pub fn mask(&self, tpcs: TpcSet) -> Result<SmMask, DeviceError> {
        tpcs.iter().try_fold(SmMask::default(), |mut mask, tpc| {
            let bad = || DeviceError::BadPartition { asked: tpcs, tpcs: self.of_tpc.len() as u16 };
            let sms = self.of_tpc.get(usize::from(tpc)).ok_or_else(bad)?;
            mask.iter_mut().zip(sms).for_each(|(word, sms)| *word |= sms);
            Ok(mask)
        })
    }
}

/// For each bit of the codes of `tpcs` TPCs, the TPCs whose code has it set, the lowest bit first. No code is 0, so no TPC is in none of them.
fn partitions_by_bit(tpcs: u16) -> impl Iterator<Item = TpcSet> {
    let bits = u16::BITS - tpcs.leading_zeros();
    (0..bits).map(move |bit| (0..tpcs).filter(|tpc| (tpc + 1) >> bit & 1 == 1).collect())
}

fn count(mask: &SmMask) -> Sms {
    Sms(mask.iter().map(|word| word.count_ones() as u16).sum())
}

fn check_count(tpcs: TpcSet, expected: Sms, mask: &SmMask) -> Result<(), DeviceError> {
    let found = count(mask);
    if found == expected { Ok(()) } else { Err(DeviceError::SmNumbers { tpcs, expected, found }) }
}

/// Runs kernels that mark the SMs they run on.
struct SmMarker<'a> {
    partitions: &'a Partitions,
    priority: i32,
    kernel: driver::Kernel,
    marks: Marks,
    /// Holds the kernel. Apart from the device's own libraries, whose symbols are the engine's.
    _library: Libraries,
}

impl<'a> SmMarker<'a> {
    fn new(device: CUdevice, partitions: &'a Partitions, priority: i32) -> Result<Self, DeviceError> {
        let library = Libraries::of(device);
        library.load(MARK_SMS_PTX.as_bytes())?;
        let kernel = library.function(MARK_SMS)?.into();
        Ok(Self { partitions, priority, kernel, marks: Marks::new()?, _library: library })
    }

    /// Every SM of a temporary partition over `tpcs`.
    fn sms_reached(&self, tpcs: TpcSet) -> Result<SmMask, DeviceError> {
        let (context, sms) = self.partitions.create_temporary(tpcs)?;
        // Dropped before the context, with the stream.
        let streams = Streams::default();
        // A temporary context has no number, and nobody asks which streams are in it.
        let stream = streams.keep(PartitionId::WHOLE, context.create_stream(self.priority)?);
        let reached = self.reach_all(stream, sms);
        // A green context must not be destroyed under running kernels, whatever went wrong above.
        driver::stream_synchronize(stream)?;
        let reached = reached?;
        check_count(tpcs, sms, &reached)?;
        Ok(reached)
    }

    /// Launches until `sms` SMs are marked or patience is at an end, and returns those that are.
    fn reach_all(&self, stream: driver::Stream, sms: Sms) -> Result<SmMask, DeviceError> {
        let started = Instant::now();
        memory::fill(stream, self.marks.0, 0, size_of::<SmMask>() as u64)?;
        loop {
            self.launch(stream, sms)?;
            let reached = self.marks.read(stream)?;
            if count(&reached) >= sms || started.elapsed() >= PATIENCE {
                return Ok(reached);
            }
        }
    }

    fn launch(&self, stream: driver::Stream, sms: Sms) -> Result<(), DeviceError> {
        let grid = sms.get() * BLOCKS_PER_SM;
        let launch = Launch {
            symbol: MARK_SMS,
            grid,
            block: 1,
            shared_bytes: 0,
            blocks_per_sm: BLOCKS_PER_SM,
            tiles: grid,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(self.marks.0),
        };
        driver::kernel_launch(stream, self.kernel, &launch, &TilesArg::default(), self.priority, false)
    }
}

/// A mask in device memory, freed when dropped.
struct Marks(DevicePtr);

impl Marks {
    fn new() -> Result<Self, DeviceError> {
        memory::allocate(size_of::<SmMask>() as u64).map(Self)
    }

    /// The mask after everything on `stream`.
    fn read(&self, stream: driver::Stream) -> Result<SmMask, DeviceError> {
        let mut bytes = [0; size_of::<SmMask>()];
        memory::download(stream, self.0, &mut bytes)?;
        let (words, _) = bytes.as_chunks();
        let mut mask = SmMask::default();
        for (word, &bytes) in mask.iter_mut().zip(words) {
            *word = u32::from_le_bytes(bytes);
        }
        Ok(mask)
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        tolerate(driver::memory_free(self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TPCS: u16 = 66;
    const SMS_PER_TPC: Sms = Sms(2);

    /// SMs in an order like that of an H200's split, in which later TPCs take the numbers that earlier ones skip.
    fn sms_of(tpc: u16) -> [u16; 2] {
        let pair = tpc * 25 % TPCS;
        [2 * pair, 2 * pair + 1]
    }

    fn mask_of(tpcs: TpcSet) -> SmMask {
        let mut mask = SmMask::default();
        for sm in tpcs.iter().flat_map(sms_of) {
            mask[usize::from(sm) / 32] |= 1 << (sm % 32);
        }
        mask
    }

    fn marks() -> Vec<SmMask> {
        partitions_by_bit(TPCS).map(mask_of).collect()
    }

    #[test]
    fn seven_partitions_tell_66_tpcs_apart_whatever_the_order_of_their_sms() {
        assert_eq!(marks().len(), 7);
        let map = SmMap::decode(&marks(), TPCS, SMS_PER_TPC).unwrap();
        for tpcs in (0..TPCS).map(|tpc| TpcSet::range(tpc, tpc + 1)).chain([TpcSet::EMPTY, TpcSet::range(3, 40).with(65)]) {
            assert_eq!(map.mask(tpcs).unwrap(), mask_of(tpcs), "{tpcs:?}");
        }
    }

    #[test]
    fn every_tpc_is_in_a_partition_and_no_partition_is_empty() {
        for tpcs in 1..=TpcSet::CAPACITY {
            assert!(partitions_by_bit(tpcs).all(|partition| !partition.is_empty()), "{tpcs}");
            let all = partitions_by_bit(tpcs).fold(TpcSet::EMPTY, |all, partition| all | partition);
            assert_eq!(all, TpcSet::range(0, tpcs));
        }
    }

    #[test]
    fn an_sm_that_was_missed_in_one_partition_is_noticed() {
        for partition in 0..7 {
            let mut marks = marks();
            let seen = marks[partition].iter().position(|&word| word != 0).unwrap();
            marks[partition][seen] &= marks[partition][seen] - 1;
            let error = SmMap::decode(&marks, TPCS, SMS_PER_TPC).unwrap_err();
            assert!(matches!(error, DeviceError::SmNumbers { .. }), "{error}");
        }
    }

    #[test]
    fn numbers_that_start_at_zero_in_every_partition_are_refused() {
        let virtual_numbers: Vec<_> = partitions_by_bit(TPCS).map(|tpcs| mask_of_first(tpcs.len() * SMS_PER_TPC.0)).collect();
        let error = SmMap::decode(&virtual_numbers, TPCS, SMS_PER_TPC).unwrap_err();
        assert!(error.to_string().contains("MPS"), "{error}");
    }

    fn mask_of_first(sms: u16) -> SmMask {
        let mut mask = SmMask::default();
        for sm in 0..sms {
            mask[usize::from(sm) / 32] |= 1 << (sm % 32);
        }
        mask
    }

    #[test]
    fn tpcs_that_were_not_measured_have_no_mask() {
        let map = SmMap::decode(&marks(), TPCS, SMS_PER_TPC).unwrap();
        assert!(matches!(map.mask(TpcSet::range(65, 67)), Err(DeviceError::BadPartition { tpcs: TPCS, .. })));
    }
}
