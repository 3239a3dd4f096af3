//! Attention and rotary positions, timed by device events: time, and TFLOP/s or GB/s, at several SM counts.
//!
//! `cargo bench --bench attention -- WORD` runs the rows whose key contains WORD. Each figure is the median of runs on operands that rotate over more
//! than the L2 cache holds, so that decode reads device memory as a model's layers do.
#![allow(missing_docs)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "cuda-13000")]
    gpu::run()?;
    Ok(())
}

#[cfg(feature = "cuda-13000")]
mod gpu {
    use std::error::Error;
    use std::sync::Arc;
    use std::time::Duration;

    use smidgen::fatbin::FATBIN;
    use smidgen::kernels::attention::{AttentionChunk, AttentionDecode, AttentionPrefill, Heads, KvCache, Rotary};
    use smidgen::kernels::random::{Distribution, RandomWeights};
    use smidgen_runtime::device::cuda::CudaDevice;
    use smidgen_runtime::device::{Buffer, Device, DeviceError, DevicePtr, Event, LaunchRequest, PartitionId, Priority, Sms, StreamId};
    use smidgen_runtime::launch::{Kernel, TILE_PROGRESS_BYTES, TilesArg};
    use smidgen_runtime::partition::TpcSet;

    const SM_COUNTS: [u16; 5] = [8, 16, 34, 66, 132];
    const REPEATS: usize = 30;

    struct Bench {
        device: Arc<dyn Device>,
        progress: Buffer,
        streams: Vec<(Sms, StreamId)>,
        /// Words to look for in keys; none selects all.
        words: Vec<String>,
    }

    /// Caches alike but for their keys and values, in pools of keys and then values, which share a page table.
    struct Caches {
        pools: Vec<Buffer>,
        /// Of the keys of a pool.
        pool_bytes: u64,
        page_table: Buffer,
        pages_per_sequence: u32,
    }

    impl Caches {
        fn all(&self) -> impl Iterator<Item = KvCache> + '_ {
            self.pools.iter().map(|pool| KvCache {
                keys: pool.ptr(),
                values: pool.ptr().offset(self.pool_bytes),
                page_table: self.page_table.ptr(),
                pages_per_sequence: self.pages_per_sequence,
            })
        }
    }

    pub fn run() -> Result<(), Box<dyn Error>> {
        let words = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
        let device: Arc<dyn Device> = match CudaDevice::open(0) {
            Ok(device) => device,
            Err(reason) => {
                println!("nothing measured: {reason}");
                return Ok(());
            }
        };
        let bench = Bench::new(device, words)?;
        println!("{} ({} SMs)", bench.device.topology().name, bench.device.topology().sms);
        for (sequences, length, heads, kv_heads, head_dim, causal) in [
            (8, 128, 12, 12, 64, false),
            (8, 512, 16, 16, 64, false),
            (8, 128, 32, 8, 64, true),
            (8, 128, 32, 8, 128, true),
            (1, 4096, 32, 8, 128, true),
            (1, 4096, 32, 32, 128, false),
            (1, 4096, 32, 32, 64, true),
        ] {
            bench.prefill(Heads { heads, kv_heads, head_dim }, sequences, length, causal)?;
        }
        for (chunks, length, context, heads, kv_heads, head_dim) in [
            (1, 512, 512, 32, 8, 128),
            (1, 512, 4096, 32, 8, 128),
            (1, 2048, 4096, 32, 8, 128),
            (8, 64, 4096, 32, 8, 128),
            (1, 16, 4096, 32, 8, 128),
            (1, 512, 4096, 32, 8, 64),
            (1, 512, 4096, 16, 8, 256),
        ] {
            for on_16_bytes in [true, false] {
                bench.chunk(Heads { heads, kv_heads, head_dim }, chunks, [length, context], on_16_bytes)?;
            }
        }
        for (sequences, context, heads, kv_heads, head_dim) in [
            (8, 128, 32, 8, 64),
            (1, 4096, 32, 8, 128),
            (8, 4096, 32, 8, 64),
            (8, 4096, 32, 8, 128),
            (64, 4096, 32, 8, 64),
            (64, 4096, 32, 8, 128),
        ] {
            bench.decode(Heads { heads, kv_heads, head_dim }, sequences, context)?;
        }
        for rows in [8, 1024] {
            bench.rotary(Heads { heads: 32, kv_heads: 8, head_dim: 128 }, rows)?;
        }
        Ok(())
    }

    impl Bench {
        fn new(device: Arc<dyn Device>, words: Vec<String>) -> Result<Self, Box<dyn Error>> {
            device.bind_thread()?;
            device.load(FATBIN.ok_or(DeviceError::NoKernels)?)?;
            let whole = device.create_stream(PartitionId::WHOLE, Priority::Normal)?;
            let progress = Buffer::new(&device, TILE_PROGRESS_BYTES)?;
            device.fill(whole, progress.ptr(), 0, progress.bytes())?;
            device.synchronize(whole)?;
            let all = device.topology().sms;
            let mut streams = Vec::new();
            for sms in SM_COUNTS.map(Sms).into_iter().filter(|&sms| sms < all) {
                let partition = device.create_partition(TpcSet::range(0, device.topology().tpcs_for(sms)))?;
                streams.push((device.partition_sms(partition)?, device.create_stream(partition, Priority::Normal)?));
            }
            streams.push((all, whole));
            Ok(Self { device, progress, streams, words })
        }

        /// Copies of operands of `bytes` bytes that together exceed the L2 cache twice, random halves in [-1, 1): zeros draw less power than a model.
        fn rotated(&self, bytes: u64) -> Result<Vec<Buffer>, Box<dyn Error>> {
            let copies = (2 * self.device.topology().l2_bytes).div_ceil(bytes.max(1)).clamp(1, 64);
            (0..copies).map(|key| self.random(bytes, key)).collect()
        }

        fn random(&self, bytes: u64, key: u64) -> Result<Buffer, Box<dyn Error>> {
            let buffer = Buffer::new(&self.device, bytes)?;
            let distribution = Distribution::Uniform { key, half_width: 1.0 };
            let columns = bytes / 2;
            let fill = RandomWeights { rows: 1, columns, stride: columns, distribution, y: buffer.ptr() };
            let (sms, stream) = self.streams[self.streams.len() - 1];
            self.time(&fill, sms, stream)?;
            Ok(buffer)
        }

        fn zeroed(&self, bytes: u64) -> Result<Buffer, DeviceError> {
            let buffer = Buffer::new(&self.device, bytes)?;
            self.device.fill(self.streams[0].1, buffer.ptr(), 0, bytes)?;
            self.device.synchronize(self.streams[0].1)?;
            Ok(buffer)
        }

        fn words(&self, values: impl Iterator<Item = u32>) -> Result<Buffer, DeviceError> {
            let bytes: Vec<u8> = values.flat_map(u32::to_le_bytes).collect();
            let buffer = Buffer::new(&self.device, bytes.len() as u64)?;
            self.device.upload(self.streams[0].1, buffer.ptr(), &bytes)?;
            self.device.synchronize(self.streams[0].1)?;
            Ok(buffer)
        }

        fn prefill(&self, heads: Heads, sequences: u32, length: u32, causal: bool) -> Result<(), Box<dyn Error>> {
            let rows = u64::from(sequences * length);
            let inputs = self.rotated(rows * u64::from(heads.qkv_width()) * 2)?;
            let output = self.zeroed(rows * u64::from(heads.output_width()) * 2)?;
            let starts = self.words((0..sequences).map(|sequence| sequence * length))?;
            let lengths = self.words((0..sequences).map(|_| length))?;
            let kernel = |qkv: &Buffer| AttentionPrefill {
                heads,
                sequences,
                max_length: length,
                tokens: sequences * length,
                rows: sequences * length,
                causal,
                window: 0,
                scale: 1.0 / (heads.head_dim as f32).sqrt(),
                qkv: qkv.ptr(),
                qkv_stride: heads.qkv_width(),
                output: output.ptr(),
                output_stride: heads.output_width(),
                starts: starts.ptr(),
                lengths: lengths.ptr(),
            };
            self.report(&inputs.iter().map(kernel).collect::<Vec<_>>())
        }

        /// Caches of so many sequences, beyond L2 together. Pages are in no order: neighbours in a sequence are 7919 pages apart, modulo their number, which is a
        /// power of two.
        fn caches(&self, heads: Heads, sequences: u32, context: u32) -> Result<Caches, Box<dyn Error>> {
            let pages_per_sequence = KvCache::pages_for(context);
            let pages = sequences * pages_per_sequence;
            let pool_bytes = u64::from(pages) * KvCache::page_bytes(heads);
            let page_table = self.words((0..pages).map(|page| page * 7919 % pages))?;
            Ok(Caches { pools: self.rotated(2 * pool_bytes)?, pool_bytes, page_table, pages_per_sequence })
        }

        /// The newest `length` of `context` tokens of each sequence. Off 16 bytes are only the rows of the output, so that the kernel for any GPU has
        /// the same to do.
        fn chunk(&self, heads: Heads, chunks: u32, [length, context]: [u32; 2], on_16_bytes: bool) -> Result<(), Box<dyn Error>> {
            let caches = self.caches(heads, chunks, context)?;
            let rows = chunks * length;
            let qkv = self.random(u64::from(rows * heads.qkv_width()) * 2, 1)?;
            let output = self.zeroed(u64::from(rows * heads.output_width()) * 2 + 16)?;
            let starts = self.words((0..chunks).map(|chunk| chunk * length))?;
            let lengths = self.words((0..chunks).map(|_| length))?;
            let contexts = self.words((0..chunks).map(|_| context))?;
            let sequence_of = self.words(0..chunks)?;
            let kernel = |cache: KvCache| AttentionChunk {
                heads,
                chunks,
                max_length: length,
                tokens: rows,
                rows,
                context,
                window: 0,
                scale: 1.0 / (heads.head_dim as f32).sqrt(),
                qkv: qkv.ptr(),
                qkv_stride: heads.qkv_width(),
                cache,
                output: if on_16_bytes { output.ptr() } else { output.ptr().offset(4) },
                output_stride: heads.output_width(),
                starts: starts.ptr(),
                lengths: lengths.ptr(),
                contexts: contexts.ptr(),
                sequence_of: sequence_of.ptr(),
            };
            self.report(&caches.all().map(kernel).collect::<Vec<_>>())
        }

        fn decode(&self, heads: Heads, sequences: u32, context: u32) -> Result<(), Box<dyn Error>> {
            let caches = self.caches(heads, sequences, context)?;
            let workspace = self.zeroed(AttentionDecode::workspace_bytes(heads, sequences, KvCache::pages_for(context)))?;
            let qkv = self.zeroed(u64::from(sequences * heads.qkv_width()) * 2)?;
            let output = self.zeroed(u64::from(sequences * heads.output_width()) * 2)?;
            let lengths = self.words((0..sequences).map(|_| context))?;
            let kernel = |cache: KvCache| AttentionDecode {
                heads,
                sequences,
                context,
                window: 0,
                scale: 1.0 / (heads.head_dim as f32).sqrt(),
                qkv: qkv.ptr(),
                qkv_stride: heads.qkv_width(),
                cache,
                output: output.ptr(),
                output_stride: heads.output_width(),
                lengths: lengths.ptr(),
                workspace: workspace.ptr(),
            };
            self.report(&caches.all().map(kernel).collect::<Vec<_>>())
        }

        fn rotary(&self, heads: Heads, rows: u32) -> Result<(), Box<dyn Error>> {
            let inputs = self.rotated(u64::from(rows * heads.qkv_width()) * 2)?;
            let positions = self.words(0..rows)?;
            let inverse_frequencies = self.zeroed(u64::from(heads.head_dim) * 2)?;
            let kernel = |qkv: &Buffer| Rotary {
                heads,
                rows,
                qkv: qkv.ptr(),
                qkv_stride: heads.qkv_width(),
                positions: positions.ptr(),
                inverse_frequencies: inverse_frequencies.ptr(),
                cache: None,
                sequence_of: DevicePtr::NULL,
            };
            self.report(&inputs.iter().map(kernel).collect::<Vec<_>>())
        }

        /// One line for each SM count. `kernels` are the same but for their operands' addresses.
        fn report(&self, kernels: &[impl Kernel]) -> Result<(), Box<dyn Error>> {
            let Some(first) = kernels.first() else { return Ok(()) };
            let (key, work) = (first.key().to_string(), first.work());
            if !self.words.is_empty() && !self.words.iter().any(|word| key.contains(word.as_str())) {
                return Ok(());
            }
            println!("{key} by {}", first.configure(self.streams[0].0, self.device.topology())?.symbol);
            for &(sms, stream) in &self.streams {
                let mut times = Vec::new();
                for at in 0..REPEATS + 3 {
                    times.push(self.time(&kernels[at % kernels.len()], sms, stream)?);
                }
                // The first runs load code and fill caches.
                let mut times = times.split_off(3);
                times.sort_unstable();
                let seconds = times[times.len() / 2].as_secs_f64();
                println!(
                    "  {sms:>3} SMs {:>9.2} us {:>7.1} TFLOP/s {:>7.0} GB/s",
                    seconds * 1e6,
                    work.flops as f64 / seconds / 1e12,
                    work.bytes as f64 / seconds / 1e9
                );
            }
            Ok(())
        }

        fn time(&self, kernel: &impl Kernel, sms: Sms, stream: StreamId) -> Result<Duration, Box<dyn Error>> {
            let launch = kernel.configure(sms, self.device.topology())?;
            let function = self.device.function(launch.symbol)?;
            let tiles = TilesArg::owner(&launch, self.progress.ptr(), DevicePtr::NULL);
            let request = LaunchRequest {
                function,
                launch: &launch,
                tiles,
                priority: Priority::Normal,
                overlaps: false,
                key: kernel.key(),
                work: kernel.work(),
            };
            let [start, end] = [Event::timed(&self.device)?, Event::timed(&self.device)?];
            self.device.record(start.id(), stream)?;
            self.device.launch(stream, &request)?;
            self.device.record(end.id(), stream)?;
            self.device.synchronize(stream)?;
            Ok(self.device.elapsed(start.id(), end.id())?)
        }
    }
}
