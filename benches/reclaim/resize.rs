//! Lines 4 and 9: kernels that are resized while they run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::{Device, Event};
use smidgen_runtime::launch::Session;
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::tenant::Class;

use crate::house::{Marks, Product, Random, Share, admit, micros, runtime, spin};
use crate::percentile;
use crate::probe::Counts;
use crate::rows::Row;

const RESIZES: u32 = 10_000;
/// Of the SMs.
const SHARES_PERCENT: [u32; 2] = [60, 80];

/// Every tile of every launch done once, over [`RESIZES`] grants at random and joiners wherever TPCs came back.
pub fn tiles(device: &Arc<dyn Device>) -> Result<Vec<Row>> {
    const TILES: u32 = 40_000;
    let runtime = runtime(device, DefaultSharing);
    let (id, mut session) = admit(&runtime, Class::Throughput)?;
    let counts = Counts::new(device, session.stream(), TILES)?;
    let (probe, all, done) = (counts.probe(10_000), device.topology().all_tpcs(), Event::new(device)?);
    let (mut random, mut resizes, mut launches, mut joiners) = (Random(0xface), 0, 0_u32, 0);
    while resizes < RESIZES {
        runtime.set_grant(id, all)?;
        session.launch(&probe)?;
        launches += 1;
        device.record(done.id(), session.stream())?;
        while !device.query(done.id())? {
            // Every fourth one takes all but a few, every fourth gives all back.
            let density = random.below(4);
            let grant: TpcSet = if density == 3 { all } else { all.iter().filter(|_| random.below(4) <= density).collect() };
            runtime.set_grant(id, grant)?;
            resizes += 1;
            if session.grow()? {
                joiners += 1;
                // The chain goes on after the joiner, so that this is when both have ended.
                device.record(done.id(), session.stream())?;
            }
        }
    }
    let wrong = counts.wrong(&**device, session.stream(), launches)?;
    Ok(vec![
        Row::at_most(4, format!("tiles lost or done twice in {resizes} random resizes of {launches} launches"), wrong as f64, "tiles", 0.0),
        Row::beside(4, "joiners launched meanwhile", f64::from(joiners), "launches"),
    ])
}

/// A tenant's launches and the share of the GPU that a plan gives it.
struct Resizable {
    device: Arc<dyn Device>,
    runtime: Runtime,
    share: Arc<AtomicU16>,
    tpcs: [u16; 2],
    session: Session,
}

impl Resizable {
    fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let all = u32::from(device.topology().tpcs());
        let tpcs = SHARES_PERCENT.map(|percent| (all * percent).div_ceil(100) as u16);
        let share = Arc::new(AtomicU16::new(tpcs[0]));
        let runtime = runtime(device, Share(Arc::clone(&share)));
        let (_, session) = admit(&runtime, Class::Throughput)?;
        Ok(Self { device: Arc::clone(device), runtime, share, tpcs, session })
    }

    /// Puts the share in force by a new plan.
    fn resize(&mut self, to: usize) -> Result<()> {
        self.share.store(self.tpcs[to], Ordering::Relaxed);
        self.runtime.set_policy(Box::new(Share(Arc::clone(&self.share))))?;
        Ok(())
    }
}

/// From 60% to 80% of the SMs in the middle of a kernel, and in the middle of a queue of products.
pub fn grow(device: &Arc<dyn Device>) -> Result<Vec<Row>> {
    let mut tenant = Resizable::new(device)?;
    let delay = delay(&mut tenant)?;
    let gap = gap(&mut tenant)?;
    Ok([delay, gap].concat())
}

/// How much later than the return of the call the gained SMs are at work, from when the kernel ends. Tiles of a fixed number of cycles are done at a
/// rate in proportion to the SMs, so that the end tells when the rate changed.
fn delay(tenant: &mut Resizable) -> Result<Vec<Row>> {
    const TILES: u32 = 40_000;
    /// About 10 us.
    const CYCLES: u32 = 20_000;
    const TRIALS: usize = 200;
    let device = Arc::clone(&tenant.device);
    let counts = Counts::new(&device, tenant.session.stream(), TILES)?;
    let probe = counts.probe(CYCLES);
    let marks = Marks::new(&device)?;
    let mut random = Random(0xd1a1);
    let mut launches = 0;
    let mut timed = |tenant: &mut Resizable, resize_after: Option<Duration>| -> Result<(f64, f64, f64)> {
        device.synchronize(tenant.session.stream())?;
        device.record(marks.from.id(), tenant.session.stream())?;
        let start = Instant::now();
        tenant.session.launch(&probe)?;
        launches += 1;
        let (mut asked, mut returned) = (0.0, 0.0);
        if let Some(after) = resize_after {
            spin(after);
            asked = micros(start.elapsed());
            tenant.resize(1)?;
            returned = micros(start.elapsed());
            ensure!(tenant.session.grow()?, "the plan gave no TPC");
        }
        device.record(marks.to.id(), tenant.session.stream())?;
        device.synchronize(tenant.session.stream())?;
        Ok((marks.micros(&*device)?, asked, returned))
    };
    let (mut delays, mut calls) = (Vec::new(), Vec::new());
    for trial in 0..TRIALS + 5 {
        tenant.resize(0)?;
        let (slow, ..) = timed(tenant, None)?;
        let (took, asked, returned) = timed(tenant, Some(Duration::from_micros(500 + random.below(1500))))?;
        let (fast, ..) = timed(tenant, None)?;
        // The first ones load code and make partitions.
        if trial >= 5 {
            // Tiles done at the slow rate until the switch and at the fast one after it add up to all: switch / slow + (took - switch) / fast = 1.
            let switch = (1.0 - took / fast) / (1.0 / slow - 1.0 / fast);
            delays.push(switch - returned);
            calls.push(returned - asked);
        }
    }
    let wrong = counts.wrong(&*device, tenant.session.stream(), launches)?;
    ensure!(wrong == 0, "{wrong} tiles were lost or done twice");
    let tile = f64::from(CYCLES) / 1.98e3;
    let work = format!("60% to 80% of the SMs in a kernel of {tile:.0} us tiles: from the call's return to the gained SMs at work");
    Ok(vec![
        Row::at_most(9, format!("{work}, p50"), percentile(&mut delays, 50.0), "us", tile),
        Row::beside(9, format!("{work}, p90"), percentile(&mut delays, 90.0), "us"),
        Row::beside(9, "the call itself, a new plan, p50", percentile(&mut calls, 50.0), "us"),
    ])
}

/// Products one after another while plans change: none may take longer than at the smaller share.
fn gap(tenant: &mut Resizable) -> Result<Vec<Row>> {
    const PRODUCTS: usize = 400;
    /// A new plan after every so many.
    const EVERY: usize = 10;
    /// Products that wait on the device while the host goes on.
    const AHEAD: usize = 3;
    let device = Arc::clone(&tenant.device);
    let product = Product::new(&device, &mut tenant.session, [8192, 14336, 4096])?;
    let ends = (0..=PRODUCTS).map(|_| Event::timed(&device)).collect::<Result<Vec<_>, _>>()?;
    let mut times_of = |resizes: bool| -> Result<Vec<f64>> {
        tenant.resize(0)?;
        for at in 0..=PRODUCTS {
            if at > AHEAD {
                while !device.query(ends[at - AHEAD].id())? {
                    std::hint::spin_loop();
                }
            }
            if resizes && at % EVERY == 0 {
                tenant.resize(at / EVERY % 2)?;
            }
            tenant.session.launch(&product.gemm)?;
            device.record(ends[at].id(), tenant.session.stream())?;
        }
        device.synchronize(tenant.session.stream())?;
        ends.windows(2).map(|pair| Ok(micros(device.elapsed(pair[0].id(), pair[1].id())?))).collect()
    };
    times_of(true)?;
    let mut steady = times_of(false)?;
    let mut resized = times_of(true)?;
    let work = "GEMM 8192x14336x4096 one after another, 60% to 80% of the SMs and back every 10: the longest against the longest at 60%";
    let ratio = percentile(&mut resized, 100.0) / percentile(&mut steady, 100.0);
    Ok(vec![
        Row::at_most(9, work, ratio, "times", 1.02),
        Row::beside(9, "the same, median against median at 60%", percentile(&mut resized, 50.0) / percentile(&mut steady, 50.0), "times"),
    ])
}
