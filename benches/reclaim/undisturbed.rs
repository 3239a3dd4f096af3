//! Line 5: what it costs an undisturbed kernel that it could be resized.

use std::sync::Arc;

use anyhow::Result;
use smidgen_runtime::device::{Buffer, Device, DevicePtr, LaunchRequest, Priority};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{Kernel, TILE_PROGRESS_BYTES, TilesArg};
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::tenant::Class;

use crate::house::{Marks, Product, admit, runtime};
use crate::percentile;
use crate::rows::Row;

/// Samples of each form, taken in turn.
const SAMPLES: usize = 200;
/// A sample is one launch of the large product and several of the small one.
const SHAPES: [([u32; 3], u32); 2] = [([8192, 14336, 4096], 1), ([2048, 4096, 4096], 10)];

pub fn run(device: &Arc<dyn Device>) -> Result<Vec<Row>> {
    let runtime = runtime(device, DefaultSharing);
    let (_, mut session) = admit(&runtime, Class::Throughput)?;
    // The runtime's own stay with its session: these launches go past it, so that one of the two forms can do without.
    // Two counters, which launches that overlap use in turn.
    let (progress, grant) = (Buffer::new(device, 2 * TILE_PROGRESS_BYTES)?, Grant::new(device)?);
    let (stream, marks) = (session.stream(), Marks::new(device)?);
    device.fill(stream, progress.ptr(), 0, progress.bytes())?;
    let mut rows = Vec::new();
    for (shape, launches) in SHAPES {
        let product = Product::new(device, &mut session, shape)?;
        let launch = product.gemm.configure(device.topology().sms, device.topology())?;
        let function = device.function(launch.symbol)?;
        let time = |elastic: bool| -> Result<f64> {
            let (key, work) = (product.gemm.key(), product.gemm.work());
            let launch_one = |at: u32, overlaps: bool| -> Result<()> {
                let counter = progress.ptr().offset(u64::from(at % 2) * TILE_PROGRESS_BYTES);
                let [progress, grant] = [counter, grant.ptr()].map(|ptr| if elastic { ptr } else { DevicePtr::NULL });
                let tiles = TilesArg::owner(&launch, progress, grant);
                let request = LaunchRequest { function, launch: &launch, tiles, priority: Priority::Normal, overlaps, key, work };
                Ok(device.launch(stream, &request)?)
            };
            // One before the first mark hides the host's part of those after it.
            launch_one(1, false)?;
            device.record(marks.from.id(), stream)?;
            (0..launches).try_for_each(|at| launch_one(at, launch.programmatic && at > 0))?;
            device.record(marks.to.id(), stream)?;
            device.synchronize(stream)?;
            Ok(marks.micros(&**device)? / f64::from(launches))
        };
        let (mut elastic, mut strided) = (Vec::new(), Vec::new());
        (0..10).try_for_each(|_| time(true).and_then(|_| time(false)).map(drop))?;
        for _ in 0..SAMPLES {
            elastic.push(time(true)?);
            strided.push(time(false)?);
        }
        let [m, n, k] = shape;
        let [elastic, strided] = [elastic, strided].map(|mut samples| percentile(&mut samples, 50.0));
        let work = format!("GEMM {m}x{n}x{k}, tiles counted and grant polled, beyond the same launch without, medians of {SAMPLES}");
        rows.push(Row::at_most(5, work, 100.0 * (elastic / strided - 1.0), "%", 1.0));
        rows.push(Row::beside(5, format!("GEMM {m}x{n}x{k}, elastic"), elastic, "us"));
        rows.push(Row::beside(5, format!("GEMM {m}x{n}x{k}, with neither"), strided, "us"));
    }
    Ok(rows)
}
