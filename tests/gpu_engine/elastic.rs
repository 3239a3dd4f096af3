//! Elastic kernels while their grant changes: every tile done once, the same bits, and counters that are ready for the next launch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use smidgen::kernels::abi::ElasticProbeArgs;
use smidgen::kernels::gemm::{Epilogue, Gemm, Residual};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::{Buffer, DevicePtr, Graph, PartitionId, Priority, Sms, StreamId, Topology};
use smidgen_runtime::launch::{Grids, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, TilesArg, Walls, Work};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, DraftPlacement, Policy, TenantDemand, TenantDraft};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};

use crate::support::{Gpu, Random, is_sanitized, rounds};

/// Counts each tile's executions: kernels/elastic_probe.cu.
struct Probe {
    tiles: u32,
    cycles: u32,
    blocks_per_sm: u32,
    executions: Buffer,
    sms: Buffer,
}

impl Probe {
    fn new(gpu: &Gpu, tiles: u32, cycles: u32) -> Self {
        Self { tiles, cycles, blocks_per_sm: 4, executions: gpu.zeroed(4 * tiles as usize), sms: gpu.poisoned_u32(tiles as usize) }
    }

    /// With so few blocks that each begins with the tile of its own number.
    fn numbered(self) -> Self {
        Self { blocks_per_sm: 1, ..self }
    }

    fn assert_each_tile_done(&self, gpu: &Gpu, times: u32) {
        let executions = gpu.download_u32(&self.executions);
        let wrong = executions.iter().position(|&count| count != times);
        assert_eq!(wrong, None, "a tile was done {} times, not {times}", wrong.map_or(0, |tile| executions[tile]));
    }

    fn sms_used(&self, gpu: &Gpu) -> BTreeSet<u32> {
        gpu.download_u32(&self.sms).into_iter().collect()
    }
}

// SAFETY: `elastic_probe` takes `ElasticProbeArgs` first, and the buffers live in `self`, which every test keeps until it has synchronised.
unsafe impl Kernel for Probe {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("elastic_probe");
        KernelKey::new(NAME, [self.tiles])
    }

    /// Much, so that sessions take it for a launch worth growing.
    fn work(&self) -> Work {
        Work { flops: u64::MAX, bytes: 0 }
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        let blocks_per_sm = self.blocks_per_sm;
        Ok(Launch {
            symbol: "elastic_probe",
            grid: Launch::persistent_grid(self.tiles, sms, blocks_per_sm),
            block: 128,
            shared_bytes: 0,
            blocks_per_sm,
            tiles: self.tiles,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: true,
            begins_by_number: true,
            params: Params::new(ElasticProbeArgs { executions: self.executions.ptr().0, sms: self.sms.ptr().0, cycles: self.cycles }),
        })
    }
}

/// A grant in device memory with a stream of its own to change it on, as the runtime has it.
pub(crate) struct Grant {
    words: Buffer,
    stream: StreamId,
}

impl Grant {
    pub(crate) fn new(gpu: &Gpu, words: [u32; 8]) -> Self {
        let stream = gpu.create_stream(PartitionId::WHOLE, Priority::High);
        Self { words: gpu.upload_u32(&words), stream }
    }

    /// Where kernels poll it.
    pub(crate) fn words(&self) -> DevicePtr {
        self.words.ptr()
    }

    fn set(&self, gpu: &Gpu, words: [u32; 8]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        gpu.device().upload(self.stream, self.words.ptr(), &bytes).expect("an upload");
        gpu.device().synchronize(self.stream).expect("an upload");
    }

    /// Sets random grants, every fourth of them empty, while `work` runs. The grant is empty in the end, too.
    pub(crate) fn set_at_random_during(&self, gpu: &Gpu, seed: u64, work: impl FnOnce()) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                gpu.device().bind_thread().expect("the GPU's context can be made current");
                let mut random = Random::new(seed);
                while !done.load(Ordering::Relaxed) {
                    let density = random.between(0, 3);
                    self.set(gpu, [0; 8].map(|_| (0..density).fold(0, |word, _| word | random.bits() as u32)));
                }
                self.set(gpu, [0; 8]);
            });
            work();
            done.store(true, Ordering::Relaxed);
        });
    }
}

/// The epoch of the fixture's tile counter, after checking that its counts are back at zero.
pub(crate) fn epoch(gpu: &Gpu) -> u32 {
    let [taken, epoch, finished, departed] = gpu.progress();
    assert_eq!([taken, finished, departed], [0; 3], "the counter was not reset");
    epoch
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_tile_is_done_once_while_the_grant_changes_at_random() {
    let gpu = Gpu::open();
    let grant = Grant::new(&gpu, [u32::MAX; 8]);
    // Long launches, and such whose blocks have two tiles each, one of them numbered.
    let few = 2 * u32::from(gpu.sms());
    for (probe, launches) in [
        (Probe::new(&gpu, 40_000, 4_000), 1),
        (Probe::new(&gpu, 20_000, 4_000).numbered(), 1),
        (Probe::new(&gpu, few, 4_000).numbered(), rounds(50)),
    ] {
        let launch = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
        let before = epoch(&gpu);
        for round in 1..=rounds(20) {
            grant.set_at_random_during(&gpu, u64::from(round), || {
                for _ in 0..launches {
                    gpu.enqueue(&probe, &launch, gpu.stream(), TilesArg { grant: grant.words.ptr(), ..gpu.tiles(&launch) });
                }
                gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
            });
            probe.assert_each_tile_done(&gpu, round * launches);
            assert_eq!(epoch(&gpu), before + round * launches);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_gemm_has_the_same_bits_while_its_grant_changes_at_random() {
    let gpu = Gpu::open();
    let mut random = Random::new(11);
    // Pairs of blocks and single ones, short tiles and such as are broken off, with a residual under way and without.
    let usual = [([4096_u32, 4096, 2048], false), ([4096, 4096, 8192], true), ([2000, 1536, 12_288], true), ([1024, 768, 8192], false)];
    for ([m, n, k], has_residual) in usual {
        let [m, n, k] = if is_sanitized() { [m.min(1024), n.min(2048), 2048] } else { [m, n, k] };
        let a = gpu.upload_f16(&random.f16s((m * k) as usize, 1.0));
        let b = gpu.upload_f16(&random.f16s((n * k) as usize, 1.0));
        let residual = gpu.upload_f16(&random.f16s((m * n) as usize, 1.0));
        let c = gpu.poisoned_f16((m * n) as usize);
        let residual = has_residual.then_some(Residual { ptr: residual.ptr(), stride: n });
        let epilogue = residual.map_or(Epilogue::NONE, Epilogue::Residual);
        let gemm = Gemm::new([m, n, k], a.ptr(), b.ptr(), c.ptr(), epilogue);
        gpu.run(&gemm, gpu.sms());
        let undisturbed = gpu.download(&c);
        let grant = Grant::new(&gpu, [u32::MAX; 8]);
        let mut launch = gemm.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a supported shape");
        launch.elastic = true;
        for round in 0..rounds(20) {
            gpu.poison(&c);
            grant.set_at_random_during(&gpu, round.into(), || {
                gpu.enqueue(&gemm, &launch, gpu.stream(), TilesArg { grant: grant.words.ptr(), ..gpu.tiles(&launch) });
                gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
            });
            assert!(gpu.download(&c) == undisturbed, "{m} x {n} x {k}, round {round}: the output differs");
            epoch(&gpu);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn sms_that_are_taken_back_are_free_before_their_tiles_would_have_ended() {
    let gpu = Gpu::open();
    // Pairs of blocks on all SMs, single blocks on about a quarter; taken back during the first tile, which goes by number, and during the third.
    for sms in [gpu.sms(), gpu.sms() / 8 * 2] {
        for tiles_before in [0, 2] {
            assert_free_within_a_third_of_a_tile(&gpu, Sms(sms), tiles_before);
        }
    }
}

/// Takes half of all SMs back from a GEMM on `sms` of them, whose blocks have done `tiles_before` tiles and a tenth of the next one.
fn assert_free_within_a_third_of_a_tile(gpu: &Gpu, sms: Sms, tiles_before: u32) {
    let [m, n, k] = if is_sanitized() { [2048_u32, 4096, 4096] } else { [4096, 8192, 65_536] };
    let [a, b] = [m * k, n * k].map(|len| gpu.zeroed(2 * len as usize));
    let c = gpu.poisoned_f16((m * n) as usize);
    let gemm = Gemm::new([m, n, k], a.ptr(), b.ptr(), c.ptr(), Epilogue::NONE);
    let launch = gemm.configure(sms, gpu.device().topology()).expect("a supported shape");
    let rounds_of_tiles = launch.tiles.div_ceil(launch.grid / launch.blocks_per_tile);
    let a_tile = gpu.time(&gemm, sms.0, 1) / rounds_of_tiles;
    // Half of the SMs, and a kernel that shares an SM with nobody.
    let taken = TpcSet::range(0, gpu.device().topology().tpcs_for(Sms(gpu.sms() / 2)));
    let kept = gpu.device().sm_mask(gpu.device().topology().all_tpcs() - taken).expect("the SMs of the TPCs");
    let partition = gpu.device().create_partition(taken).expect("a partition");
    let beside = gpu.create_stream(partition, Priority::High);
    let probe = Probe::new(gpu, u32::from(gpu.sms() / 2), 1_000);
    let one_for_each_sm = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
    let one_for_each_sm = Launch { shared_bytes: 160 << 10, elastic: false, ..one_for_each_sm };
    let waits: Vec<Duration> = (0..rounds(5))
        .map(|_| {
            let grant = Grant::new(gpu, [u32::MAX; 8]);
            gpu.poison(&c);
            gpu.enqueue(&gemm, &launch, gpu.stream(), TilesArg { grant: grant.words.ptr(), ..gpu.tiles(&launch) });
            std::thread::sleep(tiles_before * a_tile + a_tile / 10);
            let asked = Instant::now();
            grant.set(gpu, kept);
            gpu.enqueue(&probe, &one_for_each_sm, beside, TilesArg { count: one_for_each_sm.tiles, ..TilesArg::default() });
            gpu.device().synchronize(beside).expect("the probe runs");
            let waited = asked.elapsed();
            gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
            epoch(gpu);
            assert!(gpu.download(&c).iter().all(|&byte| byte == 0), "an element was not written, or not to the end");
            waited
        })
        .collect();
    probe.assert_each_tile_done(gpu, rounds(5));
    let waited = waits.iter().min().copied().unwrap_or_default();
    assert!(
        is_sanitized() || waited < a_tile / 3,
        "on {} SMs, {tiles_before} tiles done: one takes {a_tile:?}, and the SMs were free after {waits:?}",
        sms.0
    );
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_block_for_each_tile_gives_the_bits_of_persistent_blocks() {
    let gpu = Gpu::open();
    let mut random = Random::new(17);
    // Large enough to be elastic: blocks in pairs, and few rows, with k shared by two blocks or not.
    for [m, n, k] in [[4096_u32, 4096, 2048], [2048, 3072, 4096], [8, 128_256, 2048], [8, 8192, 16_384], [32, 28_672, 4096]] {
        let a = gpu.upload_f16(&random.f16s((m * k) as usize, 1.0));
        let b = gpu.upload_f16(&random.f16s((n * k) as usize, 1.0));
        let c = gpu.poisoned_f16((m * n) as usize);
        let gemm = Gemm::new([m, n, k], a.ptr(), b.ptr(), c.ptr(), Epilogue::NONE);
        gpu.run(&gemm, gpu.sms());
        let persistent = gpu.download(&c);
        gpu.poison(&c);
        let mut launch = gemm.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a supported shape");
        launch.take_form(Grids::TilePerBlock);
        assert_eq!(launch.grid, launch.tiles * launch.blocks_per_tile);
        gpu.enqueue(&gemm, &launch, gpu.stream(), TilesArg { count: launch.tiles, ..TilesArg::default() });
        gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
        assert!(gpu.download(&c) == persistent, "{m} x {n} x {k}: the output differs");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_launch_with_no_sm_granted_still_finishes() {
    let gpu = Gpu::open();
    let grant = Grant::new(&gpu, [0; 8]);
    for probe in [Probe::new(&gpu, 50, 1_000), Probe::new(&gpu, 2_000, 1_000).numbered()] {
        let launch = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
        gpu.enqueue(&probe, &launch, gpu.stream(), TilesArg { grant: grant.words.ptr(), ..gpu.tiles(&launch) });
        gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
        probe.assert_each_tile_done(&gpu, 1);
        assert_eq!(probe.sms_used(&gpu).len(), 1, "only one block may stay without a grant");
        epoch(&gpu);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_grant_keeps_a_kernel_on_its_sms() {
    let gpu = Gpu::open();
    let grant = Grant::new(&gpu, [0b1111_0000, 0, 0, 0, 0, 0, 0, 0]);
    for probe in [Probe::new(&gpu, 2_000, 10_000), Probe::new(&gpu, 2_000, 10_000).numbered()] {
        assert_only_on_sms_4_to_7(&gpu, &grant, &probe);
    }
}

fn assert_only_on_sms_4_to_7(gpu: &Gpu, grant: &Grant, probe: &Probe) {
    let launch = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
    gpu.enqueue(probe, &launch, gpu.stream(), TilesArg { grant: grant.words.ptr(), ..gpu.tiles(&launch) });
    gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
    probe.assert_each_tile_done(gpu, 1);
    let outside: Vec<u32> = probe.sms_used(gpu).into_iter().filter(|sm| !(4..8).contains(sm)).collect();
    assert!(outside.is_empty(), "no block stays outside the grant while others hold theirs, but {outside:?} worked");
    epoch(gpu);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_joiner_finishes_tiles_with_the_owner_once_each() {
    let gpu = Gpu::open();
    // The owner may use SMs 0 to 3, so it needs far longer than the joiner needs to start.
    let grant = Grant::new(&gpu, [0b1111, 0, 0, 0, 0, 0, 0, 0]);
    for probe in [Probe::new(&gpu, 20_000, 20_000), Probe::new(&gpu, 5_000, 20_000).numbered()] {
        assert_joined(&gpu, &grant, &probe);
    }
}

fn assert_joined(gpu: &Gpu, grant: &Grant, probe: &Probe) {
    let launch = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
    for round in 1..=5 {
        let before = epoch(gpu);
        // Another each time: of many streams, some share a hardware queue, and this one may share the owner's and begin only behind it.
        let beside = gpu.create_stream(PartitionId::WHOLE, Priority::Normal);
        gpu.enqueue(probe, &launch, gpu.stream(), TilesArg { grant: grant.words.ptr(), ..gpu.tiles(&launch) });
        gpu.enqueue(probe, &launch, beside, TilesArg { joins: 1 + before, ..gpu.tiles(&launch) });
        gpu.device().synchronize(gpu.stream()).expect("the owner runs");
        // The owner's stream alone was waited for: its completion must cover the joiner's tiles.
        probe.assert_each_tile_done(gpu, round);
        assert_eq!(epoch(gpu), before + 1);
        gpu.device().synchronize(beside).expect("the joiner runs");
    }
    assert!(probe.sms_used(gpu).len() > 5, "the joiner did no tile");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_joiner_that_comes_too_late_touches_nothing() {
    let gpu = Gpu::open();
    let probe = Probe::new(&gpu, 1_000, 1_000);
    let launch = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
    let before = epoch(&gpu);
    gpu.run(&probe, gpu.sms());
    gpu.enqueue(&probe, &launch, gpu.stream(), TilesArg { joins: 1 + before, ..gpu.tiles(&launch) });
    gpu.device().synchronize(gpu.stream()).expect("the joiner returns");
    probe.assert_each_tile_done(&gpu, 1);
    assert_eq!(epoch(&gpu), before + 1);
    // And the next owner is not disturbed by it.
    gpu.run(&probe, gpu.sms());
    probe.assert_each_tile_done(&gpu, 2);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn replays_of_a_graph_need_no_reset_between_them() {
    let gpu = Gpu::open();
    let probe = Probe::new(&gpu, 3_000, 1_000);
    let launch = probe.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a probe");
    gpu.run(&probe, gpu.sms());
    let before = epoch(&gpu);
    let stream = gpu.create_stream(PartitionId::WHOLE, Priority::Normal);
    let tiles = TilesArg { grant: DevicePtr::NULL, ..gpu.tiles(&launch) };
    gpu.device().begin_capture(stream).expect("a capture");
    for _ in 0..4 {
        gpu.enqueue(&probe, &launch, stream, tiles);
    }
    let graph = Graph::end_capture(gpu.device(), stream).expect("a graph");
    for replay in 1..=5 {
        gpu.device().replay(graph.id(), stream).expect("a replay");
        gpu.device().synchronize(stream).expect("the graph runs");
        probe.assert_each_tile_done(&gpu, 1 + 4 * replay);
        assert_eq!(epoch(&gpu), before + 4 * replay);
    }
}

/// A latency tenant owns the first [`OWNED`] TPCs; a throughput tenant owns the rest and may borrow them.
struct Borrowing;

const OWNED: u16 = 16;

impl Policy for Borrowing {
    fn name(&self) -> &'static str {
        "borrowing"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let all = topology.all_tpcs();
        let walls = Walls { grid: true, grant: true, partition: true };
        let draft = |tenant: &TenantDemand| {
            let first = all.first(OWNED);
            let (owned, grant) = if tenant.class == Class::Latency { (first, first) } else { (all - first, all) };
            let default = DraftPlacement { sms: topology.sms_of(grant), tpcs: grant, priority: Priority::Normal };
            (tenant.id, TenantDraft { owned, grant, default, kernels: BTreeMap::new(), walls })
        };
        tenants.iter().map(draft).collect()
    }
}

/// The runtime, the borrower, and the owner, whose TPCs are lent as soon as a request of its has ended.
fn lending(gpu: &Gpu) -> (Runtime, [(TenantId, Session); 2]) {
    let runtime = Runtime::new(Arc::clone(gpu.device()), Box::new(Borrowing), Arc::new(ProfileStore::default()));
    runtime.set_hysteresis(Duration::ZERO);
    let tenants = [Class::Throughput, Class::Latency].map(|class| {
        let spec = TenantSpec { name: format!("{class:?}"), class, slo: None, memory_bytes: 1 << 30 };
        let id = runtime.admit(spec).expect("an empty GPU");
        (id, runtime.session(id).expect("an admitted tenant"))
    });
    (runtime, tenants)
}

/// Time enough for a grant's copy to arrive.
fn let_copies_arrive() {
    std::thread::sleep(Duration::from_millis(2));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_borrower_uses_sms_while_they_are_lent_and_none_of_them_during_their_owners_request() {
    let gpu = Gpu::open();
    let (_runtime, [(_, mut batch), (_, mut latency)]) = lending(&gpu);
    let owned = gpu.device().sm_mask(TpcSet::range(0, OWNED)).expect("the SMs of the TPCs");
    let is_owned = |sm: &u32| owned[*sm as usize / 32] >> (sm % 32) & 1 == 1;
    for round in 0..rounds(20) {
        latency.end_request().expect("no capture");
        let_copies_arrive();
        // What was written by a round before must not be taken for this one's.
        let probe = Probe::new(&gpu, 2_000, 10_000);
        batch.launch_dyn(&probe).expect("a launch");
        gpu.device().synchronize(batch.stream()).expect("the kernel runs");
        probe.assert_each_tile_done(&gpu, 1);
        assert!(probe.sms_used(&gpu).iter().any(is_owned), "round {round}: nothing was borrowed");

        latency.begin_request().expect("a request");
        let_copies_arrive();
        let probe = Probe::new(&gpu, 2_000, 10_000);
        batch.launch_dyn(&probe).expect("a launch");
        gpu.device().synchronize(batch.stream()).expect("the kernel runs");
        probe.assert_each_tile_done(&gpu, 1);
        let taken: Vec<u32> = probe.sms_used(&gpu).into_iter().filter(is_owned).collect();
        assert!(taken.is_empty(), "round {round}: {taken:?} were used during the request");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_session_grows_its_long_launch_onto_sms_that_came_back_and_every_tile_is_done_once() {
    let gpu = Gpu::open();
    let (_runtime, [(_, mut batch), (_, mut latency)]) = lending(&gpu);
    latency.begin_request().expect("a request");
    let_copies_arrive();
    for round in 0..rounds(20) {
        // About 20 ms on the SMs that the borrower owns: 20 us a tile, four blocks on an SM.
        let probe = Probe::new(&gpu, 400_000, 40_000);
        batch.launch_dyn(&probe).expect("a launch");
        std::thread::sleep(Duration::from_millis(2));
        latency.end_request().expect("no capture");
        let_copies_arrive();
        assert!(batch.grow().expect("a joiner"), "round {round}: nothing came back");
        latency.begin_request().expect("a request");
        gpu.device().synchronize(batch.stream()).expect("owner and joiner run");
        probe.assert_each_tile_done(&gpu, 1);
    }
}
