//! Partitions and masks name the SMs on which kernels run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use smidgen_runtime::device::{Device, DeviceError, PartitionId, Priority};
use smidgen_runtime::partition::{Ladder, PARTITION_BYTES, TpcSet};
use smidgen_runtime::policy::{Policy, Slo};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::runtime::Runtime;

use crate::gpu::{Args, Gpu, is_sanitized, launch};

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_kernel_runs_on_every_sm_of_its_partition_and_on_no_other() {
    let gpu = Gpu::open();
    let last = gpu.tpcs();
    let odd: TpcSet = (0..last).filter(|tpc| tpc % 2 == 1).collect();
    for tpcs in [TpcSet::range(0, 1), TpcSet::range(3, 8), TpcSet::range(last - 2, last), odd, TpcSet::range(0, last)] {
        let partition = gpu.partition(tpcs);
        assert_eq!(gpu.cuda.partition_sms(partition).unwrap(), gpu.cuda.topology().sms_of(tpcs), "{tpcs:?}");
        assert_eq!(gpu.sms_used(gpu.stream(partition)), gpu.granted(tpcs), "{tpcs:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn disjoint_partitions_share_no_sm_while_both_run() {
    let gpu = Gpu::open();
    let middle = gpu.tpcs() / 2;
    let halves = [TpcSet::range(0, middle), TpcSet::range(middle, gpu.tpcs())];
    let runs = halves.map(|tpcs| (gpu.stream(gpu.partition(tpcs)), gpu.words(gpu.blocks())));
    for round in 0..4 {
        for (stream, out) in &runs {
            gpu.cuda.fill(*stream, out.ptr(), 0xff, out.bytes()).unwrap();
            gpu.record_sms(*stream, out, Priority::Normal);
        }
        let [low, high] = runs.each_ref().map(|(stream, out)| gpu.read(*stream, out).into_iter().collect::<BTreeSet<u32>>());
        assert!(low.is_disjoint(&high), "round {round}: {low:?} {high:?}");
        assert_eq!(low.len() + high.len(), usize::from(gpu.cuda.topology().sms.0), "round {round}: {low:?} {high:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_mask_of_each_tpc_names_the_sms_on_which_kernels_in_its_partition_run() {
    let gpu = Gpu::open();
    let mut seen = BTreeSet::new();
    let tpcs: TpcSet = (0..gpu.tpcs()).step_by(if is_sanitized() { 11 } else { 1 }).collect();
    for tpc in tpcs.iter() {
        let one = TpcSet::range(tpc, tpc + 1);
        let sms = gpu.granted(one);
        assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(one))), sms, "TPC {tpc}");
        assert!(seen.is_disjoint(&sms), "TPC {tpc} shares one of {sms:?}");
        seen.extend(sms);
    }
    assert_eq!(seen, gpu.granted(tpcs));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_mask_of_any_set_names_the_sms_on_which_kernels_in_its_partition_run() {
    let gpu = Gpu::open();
    // Which TPCs: the bits of random numbers from Marsaglia's xorshift64 ("Xorshift RNGs", 2003), always the same.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bit = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random >> 63 == 1
    };
    for _ in 0..24 {
        let tpcs: TpcSet = (0..gpu.tpcs()).filter(|_| bit()).collect();
        assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(tpcs))), gpu.granted(tpcs), "{tpcs:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_runtime_of_slo_starts_with_as_many_partitions_of_those_foreseen_as_it_has_room_for() {
    let gpu = Gpu::open();
    let free = || gpu.cuda.free_bytes().unwrap();
    let (family, before, begun) = (Slo::default().family(gpu.cuda.topology()), free(), Instant::now());
    let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(Slo::default()), Arc::new(ProfileStore::default()));
    let taken = before.saturating_sub(free());
    let [room, made] = <[u64; 2]>::from(runtime.partition_bytes()).map(|bytes| bytes / PARTITION_BYTES);
    eprintln!("{made} partitions in {:?}, {} MB of device memory", begun.elapsed(), taken / 1_000_000);
    assert_eq!(made, (room - room / 4).min(family.len() as u64), "of {} foreseen", family.len());
    // Another process may have taken or left some of it.
    assert!(taken < 2 * made * PARTITION_BYTES, "{taken} bytes");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn as_many_partitions_as_slo_foresees_exist_side_by_side_and_each_has_its_own_sms() {
    let gpu = Gpu::open();
    let family = Slo::default().family(gpu.cuda.topology());
    let ladder = Ladder::new(Arc::clone(&gpu.device), family.len() * 2);
    ladder.make_family(family.iter().copied());
    assert_eq!(ladder.len(), family.len());
    for &tpcs in family.iter().step_by(if is_sanitized() { 47 } else { 1 }) {
        let stream = gpu.stream(ladder.partition(tpcs).unwrap().id());
        assert_eq!(gpu.sms_used(stream), gpu.granted(tpcs), "{tpcs:?}");
        gpu.cuda.destroy_stream(stream);
    }
    assert_eq!(ladder.len(), family.len(), "none was made again");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn masks_are_measured_rightly_beside_kernels_that_fill_every_sm() {
    let gpu = Gpu::open();
    let busy = gpu.stream(PartitionId::WHOLE);
    let out = gpu.words(gpu.blocks());
    let record = gpu.function("record_sms");
    // Two waves of about 10 ms each.
    let args = Args { out: out.ptr(), number: 20_000_000, unused: [0; 6] };
    launch(&*gpu.cuda, busy, record, args, [gpu.blocks(), 0], Priority::Normal).unwrap();
    let first = gpu.granted(TpcSet::range(0, 1));
    assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(TpcSet::range(0, 1)))), first);
    gpu.cuda.synchronize(busy).unwrap();
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn no_mask_names_sms_that_the_gpu_lacks() {
    let gpu = Gpu::open();
    assert_eq!(gpu.cuda.sm_mask(TpcSet::EMPTY).unwrap(), [0; 8]);
    for bad in [TpcSet::range(gpu.tpcs(), gpu.tpcs() + 1), TpcSet::range(0, TpcSet::CAPACITY)] {
        let error = gpu.cuda.sm_mask(bad).unwrap_err();
        assert!(matches!(error, DeviceError::BadPartition { asked, .. } if asked == bad), "{error}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_set_without_tpcs_or_beyond_the_gpu_is_no_partition() {
    let gpu = Gpu::open();
    for bad in [TpcSet::EMPTY, TpcSet::range(gpu.tpcs(), gpu.tpcs() + 1), TpcSet::range(0, TpcSet::CAPACITY)] {
        let error = gpu.cuda.create_partition(bad).unwrap_err();
        let DeviceError::BadPartition { asked, tpcs } = error else { panic!("{error}") };
        assert_eq!((asked, tpcs), (bad, gpu.tpcs()));
    }
    assert!(gpu.cuda.create_stream(PartitionId(1000), Priority::High).is_err());
    assert!(gpu.cuda.partition_sms(PartitionId(1000)).is_err());
}
