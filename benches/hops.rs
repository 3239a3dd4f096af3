//! What a change of partition costs on the GPU: `cargo bench --bench hops`. Without a GPU nothing is measured.
//!
//! | row | ours | against |
//! |---|---|---|
//! | 2 | a chain of 10 us kernels that alternates between two partitions | the same chain in one of them |
//! | 3 | a graph of BERT-base whose kernels are in two partitions | a graph of it on one stream |
//!
//! Both partitions of a row have the same number of SMs, so that the hop is the only difference: event record and wait in a chain of launches, an edge between
//! nodes of two contexts in a graph. Launches on one stream may overlap the end of the one before (programmatic dependent launch), which a hop
//! prevents; row 2 is measured with and without. Samples of the two sides are taken in turn, and medians compared. `SMIDGEN_RESULTS` names a folder for
//! `hops.json`.
#![allow(missing_docs)]

#[path = "runtime/rows.rs"]
mod rows;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use smidgen::kernels::abi::ElasticProbeArgs;
use smidgen::models::{Direct, ModelSource};
use smidgen_runtime::device::{Buffer, Device, DevicePtr, Event, Priority, Sms, Topology};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{
    Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Placement, Plan, PlanCell, Session, TenantPlan, Walls, Work,
};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::tenant::TenantId;

use rows::Row;

/// Samples of each side.
const SAMPLES: usize = 31;

/// Launches of a chain, and replays of a graph, in one sample.
const LAUNCHES: u32 = 400;
const REPLAYS: u32 = 8;

/// SM cycles of a 10 us kernel at the clock of an H200 that is not at its power limit.
const CYCLES: u32 = 19_800;

const TENANT: TenantId = TenantId(0);

fn main() -> Result<()> {
    let device = match smidgen::cuda::open() {
        Ok(device) => device,
        Err(reason) => {
            println!("nothing measured: {reason}");
            return Ok(());
        }
    };
    let mut rows = Vec::new();
    for overlaps in [false, true] {
        let [apart, together] = chain(&device, overlaps)?;
        let kernel_us = together.as_secs_f64() * 1e6;
        let which = if overlaps { "launches overlapping on one stream" } else { "no launch overlapping another" };
        let work = format!("hop between two {kernel_us:.2} us kernels, eager, {which}");
        rows.push(Row::at_most(2, work, (apart.as_secs_f64() - together.as_secs_f64()) * 1e6, "us", 0.3));
    }
    for (what, moved) in
        [("attention", ["attention"].as_slice()), ("all but the GEMMs", ["attention", "layer_norm", "embedding"].as_slice())]
    {
        let (mixed, plain, hops) = bert_base(&device, moved)?;
        let percent = 100.0 * (mixed.as_secs_f64() / plain.as_secs_f64() - 1.0);
        let work = format!(
            "BERT-base b8 s128 replayed with {what} in another partition, {hops} hops, {:.3} ms on one stream",
            plain.as_secs_f64() * 1e3
        );
        rows.push(Row::at_most(3, work, percent, "% more", 3.0));
    }
    rows.iter().for_each(|row| println!("{row}"));
    rows::write("hops", Some(device.topology()), &rows)
}

/// One block for each of its tiles, each busy for [`CYCLES`]; two of different `number` are placed apart.
#[derive(Clone, Copy)]
struct Busy {
    number: u32,
    tiles: u32,
    overlaps: bool,
    executions: DevicePtr,
    sms: DevicePtr,
}

// SAFETY: `elastic_probe` takes `ElasticProbeArgs` first, and the buffers live until the chain was waited for.
unsafe impl Kernel for Busy {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("elastic_probe");
        KernelKey::new(NAME, [self.number, self.tiles])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn configure(&self, _: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch {
            symbol: "elastic_probe",
            grid: self.tiles,
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 4,
            tiles: self.tiles,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: self.overlaps,
            begins_by_number: false,
            params: Params::new(ElasticProbeArgs { executions: self.executions.0, sms: self.sms.0, cycles: CYCLES }),
        })
    }
}

/// Time of one kernel of a chain whose kernels alternate between two halves of the GPU, and of one that stays in the first half.
fn chain(device: &Arc<dyn Device>, overlaps: bool) -> Result<[Duration; 2]> {
    let half = device.topology().tpcs() / 2;
    let place = |from: u16| -> Result<Placement> {
        let tpcs = TpcSet::range(from, from + half);
        let partition = device.create_partition(tpcs)?;
        Ok(Placement { sms: device.topology().sms_of(tpcs), partition, priority: Priority::Normal, borrows: false })
    };
    let halves = [place(0)?, place(half)?];
    let tiles = halves[0].sms.get();
    let (executions, sms) = (Buffer::new(device, 4 * u64::from(tiles))?, Buffer::new(device, 4 * u64::from(tiles))?);
    let kernels = [0, 1].map(|number| Busy { number, tiles, overlaps, executions: executions.ptr(), sms: sms.ptr() });
    let on = |second: Placement| {
        let placements = kernels.iter().map(|kernel| kernel.key()).zip([halves[0], second]);
        session(device, halves[0], placements).map(|(_, session)| session)
    };
    let mut sides = [on(halves[1])?, on(halves[0])?];
    let marks = [Event::timed(device)?, Event::timed(device)?];
    let body = |session: &mut Session| (0..LAUNCHES as usize).try_for_each(|at| session.launch(&kernels[at % 2]));
    medians(|side| Ok(time(&mut sides[side], &marks, body)? / LAUNCHES))
}

/// Time of a forward pass with the kernels named in `moved` in another partition, of one on a single stream, and the hops of the former.
fn bert_base(device: &Arc<dyn Device>, moved: &[&str]) -> Result<(Duration, Duration, u64)> {
    let all = device.topology().all_tpcs();
    let whole = Placement::whole(device.topology().sms);
    // A green context of every SM is still another context than the whole GPU.
    let other = Placement { partition: device.create_partition(all)?, ..whole };
    let (plans, mut session) = session(device, whole, std::iter::empty())?;
    let source = ModelSource::find("bert-base")?;
    let mut workload = source.workload(&mut session, &mut Direct, 8, 128)?;
    session.forget_counts();
    workload.enqueue(&mut session)?;
    let keys: Vec<KernelKey> = session.seen().iter().filter(|seen| seen.launches > 0).map(|seen| seen.key).collect();
    let plain = session.capture(|session| workload.enqueue(session))?;
    let is_moved = |key: &&KernelKey| moved.iter().any(|name| key.name().starts_with(name));
    plans.publish(plan(device, whole, keys.iter().filter(is_moved).map(|key| (*key, other))));
    workload.enqueue(&mut session)?;
    let before = session.stats().hops;
    let mixed = session.capture(|session| workload.enqueue(session))?;
    let hops = session.stats().hops - before;
    let marks = [Event::timed(device)?, Event::timed(device)?];
    let graphs = [&mixed, &plain];
    let [mixed, plain] = medians(|side| {
        let graph = graphs[side];
        // One before the first mark hides the host's part of the next.
        session.replay(graph)?;
        Ok(time(&mut session, &marks, |session| (0..REPLAYS).try_for_each(|_| session.replay(graph)))? / REPLAYS)
    })?;
    Ok((mixed, plain, hops))
}

/// Device time of `body`.
fn time(session: &mut Session, marks: &[Event; 2], body: impl FnOnce(&mut Session) -> Result<(), LaunchError>) -> Result<Duration> {
    let device = Arc::clone(session.device());
    device.record(marks[0].id(), session.stream())?;
    body(session)?;
    device.record(marks[1].id(), session.stream())?;
    device.synchronize(session.stream())?;
    Ok(device.elapsed(marks[0].id(), marks[1].id())?)
}

/// Medians of samples of two sides, taken in turn; the first of each is thrown away.
fn medians(mut sample: impl FnMut(usize) -> Result<Duration>) -> Result<[Duration; 2]> {
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..=SAMPLES {
        for (side, samples) in samples.iter_mut().enumerate() {
            let taken = sample(side)?;
            if round > 0 {
                samples.push(taken);
            }
        }
    }
    Ok(samples.map(|mut samples| {
        samples.sort_unstable();
        samples[SAMPLES / 2]
    }))
}

/// A session whose kernels are placed as listed, and at `default` where not.
fn session(
    device: &Arc<dyn Device>,
    default: Placement,
    placements: impl Iterator<Item = (KernelKey, Placement)>,
) -> Result<(PlanCell, Session), LaunchError> {
    let plans = PlanCell::new(plan(device, default, placements));
    let session = Session::new(device, &plans, TENANT, Arc::new(Grant::new(device)?))?;
    Ok((plans, session))
}

fn plan(device: &Arc<dyn Device>, default: Placement, placements: impl Iterator<Item = (KernelKey, Placement)>) -> Plan {
    let kernels = placements.map(|(key, placement)| (key.fingerprint(), placement)).collect();
    let all = device.topology().all_tpcs();
    let tenant = TenantPlan { owned: all, grant: all, default, kernels, walls: Walls::default() };
    Plan { policy: "fixed", tenants: HashMap::from([(TENANT, tenant)]), ..Plan::default() }
}
