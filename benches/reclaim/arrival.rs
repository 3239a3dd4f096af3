//! Line 4: how long a latency tenant's kernel waits for the SMs that its tenant had lent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use smidgen_runtime::device::{Buffer, Device, DevicePtr, PartitionId, Priority, Sms, Stream, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};
use smidgen_runtime::tenant::Class;

use crate::house::{Marks, Product, RECLAIMED, Random, Reclaim, admit, micros, runtime, spin};
use crate::percentile;
use crate::rows::Row;

const TRIALS: usize = 2000;
/// Products in flight when the kernel arrives: 4.5 ms on an H200.
const QUEUED: usize = 3;
/// Of them, the time within which it arrives.
const ARRIVES_US: [u64; 2] = [200, 3200];

/// Each block writes when it started and ended, by the GPU's clock in nanoseconds, and takes 20,000 cycles in between: about 10 us.
const STAMP_PTX: &str = r".version 7.0
.target sm_80
.address_size 64

.visible .entry smidgen_bench_stamp(.param .u64 stamps, .param .align 8 .b8 tiles[24])
{
    .reg .pred %p;
    .reg .b32 %block, %thread;
    .reg .b64 %stamps, %offset, %begun, %start, %now, %spent;
    mov.u64 %begun, %globaltimer;
    mov.u64 %start, %clock64;
    ld.param.u64 %stamps, [stamps];
    cvta.to.global.u64 %stamps, %stamps;
    mov.u32 %block, %ctaid.x;
    mul.wide.u32 %offset, %block, 16;
    add.u64 %stamps, %stamps, %offset;
stay:
    mov.u64 %now, %clock64;
    sub.u64 %spent, %now, %start;
    setp.lt.u64 %p, %spent, 20000;
    @%p bra stay;
    mov.u32 %thread, %tid.x;
    setp.ne.u32 %p, %thread, 0;
    @%p bra done;
    st.global.u64 [%stamps], %begun;
    mov.u64 %now, %globaltimer;
    st.global.u64 [%stamps+8], %now;
done:
    ret;
}
";

/// One block for each SM, with so much shared memory that it shares an SM with nobody.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    stamps: DevicePtr,
}

/// Blocks of the kernel.
const BLOCKS: u32 = 2 * RECLAIMED as u32;

// SAFETY: `smidgen_bench_stamp` takes an address first, of a buffer that outlives every trial.
unsafe impl Kernel for Stamp {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("bench_stamp");
        KernelKey::new(NAME, [BLOCKS])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn configure(&self, _: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch {
            symbol: "smidgen_bench_stamp",
            grid: BLOCKS,
            block: 256,
            shared_bytes: 160 << 10,
            blocks_per_sm: 1,
            tiles: BLOCKS,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(self.stamps.0),
        })
    }
}

/// Of one arrival, microseconds since the host's call.
#[derive(Debug, Clone, Copy)]
struct Served {
    /// The last of the kernel's blocks had started.
    started: f64,
    ended: f64,
    /// The host's own time in `begin_request`.
    announced: f64,
}

pub fn run(device: &Arc<dyn Device>) -> Result<Vec<Row>> {
    device.load(STAMP_PTX.as_bytes())?;
    let runtime = runtime(device, Reclaim);
    runtime.set_hysteresis(Duration::ZERO);
    let (_, mut batch) = admit(&runtime, Class::Throughput)?;
    let (_, mut latency) = admit(&runtime, Class::Latency)?;
    let product = Product::new(device, &mut batch, [8192, 14336, 4096])?;
    let stamps = Buffer::new(device, u64::from(BLOCKS) * 16)?;
    let stamp = Stamp { stamps: stamps.ptr() };
    let marks = Marks::new(device)?;
    // Nothing else is ever on it, so that a mark here is the moment at which the device hears of the arrival.
    let arrivals = Stream::new(device, PartitionId::WHOLE, Priority::High)?;
    let mut random = Random(0x5eed);

    let mut serve = |announces: bool| -> Result<Served> {
        let arrival = Instant::now();
        device.record(marks.from.id(), arrivals.id())?;
        let heard = micros(arrival.elapsed());
        let announcing = Instant::now();
        if announces {
            latency.begin_request()?;
        }
        let announced = micros(announcing.elapsed());
        latency.launch(&stamp)?;
        device.record(marks.to.id(), latency.stream())?;
        while !device.query(marks.to.id())? {
            std::hint::spin_loop();
        }
        if announces {
            latency.end_request()?;
        }
        let mut words = vec![0; stamps.bytes() as usize];
        device.download(latency.stream(), stamps.ptr(), &mut words)?;
        let words: Vec<u64> = words.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
        let last_start = words.iter().step_by(2).max().copied().unwrap_or_default();
        let last_end = words.iter().skip(1).step_by(2).max().copied().unwrap_or_default();
        let ended = heard + marks.micros(&**device)?;
        Ok(Served { started: ended - last_end.saturating_sub(last_start) as f64 / 1e3, ended, announced })
    };
    let mut trials = |count: usize, queued: usize, announces: bool| -> Result<Vec<Served>> {
        let mut served = Vec::with_capacity(count);
        for _ in 0..count {
            (0..queued).try_for_each(|_| batch.launch(&product.gemm))?;
            if queued > 0 {
                spin(Duration::from_micros(ARRIVES_US[0] + random.below(ARRIVES_US[1] - ARRIVES_US[0])));
            }
            served.push(serve(announces)?);
            device.synchronize(batch.stream())?;
        }
        Ok(served)
    };
    // Code is loaded, and TPCs are lent for the first time.
    trials(20, QUEUED, true)?;
    let idle = trials(200, 0, true)?;
    let with = trials(TRIALS, QUEUED, true)?;
    // What priority alone does: the borrower keeps what it borrowed.
    let without = trials(100, QUEUED, false)?;

    let figure =
        |served: &[Served], what: fn(&Served) -> f64, percent: f64| percentile(&mut served.iter().map(what).collect::<Vec<_>>(), percent);
    let started = |served: &Served| served.started;
    let ended = |served: &Served| served.ended;
    let beside = format!("{BLOCKS} blocks arrive beside GEMM 8192x14336x4096 on all SMs, {TRIALS} trials");
    Ok(vec![
        Row::at_most(4, format!("{beside}: to the start of the last, p50"), figure(&with, started, 50.0), "us", 25.0),
        Row::at_most(4, format!("{beside}: to the start of the last, p99"), figure(&with, started, 99.0), "us", 50.0),
        Row::beside(4, format!("{beside}: to the end, p50"), figure(&with, ended, 50.0), "us"),
        Row::beside(4, format!("{beside}: to the end, p99"), figure(&with, ended, 99.0), "us"),
        Row::beside(4, "the same on an idle GPU: to the start of the last, p50", figure(&idle, started, 50.0), "us"),
        Row::beside(4, "the same with high priority alone: to the start of the last, p50", figure(&without, started, 50.0), "us"),
        Row::beside(4, "the host's time in begin_request, one borrower, p50", figure(&with, |served| served.announced, 50.0), "us"),
        Row::beside(4, "the host's time in begin_request, one borrower, p99", figure(&with, |served| served.announced, 99.0), "us"),
    ])
}
