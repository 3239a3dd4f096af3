//! Attention over a paged KV cache on the GPU against softmax in f64 on the CPU: caches of any length, any head size, pages in any order, and the
//! same bits at every SM count.

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rayon::prelude::*;
use smidgen::kernels::attention::{AttentionDecode, Heads, KvCache, PAGE_TOKENS, Rotary};
use smidgen::kernels::gemm::{Epilogue, Gemm};
use smidgen_runtime::device::{Buffer, DevicePtr, Sms};
use smidgen_runtime::launch::{Kernel, Launch, TilesArg};

use crate::attention::{assert_same_bits_while_the_grant_changes, attend, check, f64s, halves};
use crate::draws::{HEAD_DIMS, extent, for_draws, gap, head_dims, heads};
use crate::ieee754::assert_as_ieee_754_says;
use crate::support::{Gpu, Random, is_sanitized};

/// Keys and values of random tokens on the host and on the GPU, in pages of random order. What no sequence owns is NaN.
pub(crate) struct PagedCache {
    heads: Heads,
    pub(crate) pages_per_sequence: u32,
    table: Vec<u32>,
    /// Keys and values.
    pools: [Vec<f16>; 2],
    on_gpu: [Buffer; 3],
}

impl PagedCache {
    /// Room for `capacity` tokens of each sequence, of which `lengths` are there.
    pub(crate) fn new(gpu: &Gpu, random: &mut Random, heads: Heads, lengths: &[u32], capacity: u32) -> Self {
        let pages_per_sequence = KvCache::pages_for(capacity);
        let pages = pages_per_sequence * lengths.len() as u32;
        let mut order: Vec<u32> = (0..pages).collect();
        for last in (1..pages).rev() {
            order.swap(last as usize, random.between(0, last) as usize);
        }
        let mut table = Vec::new();
        for (of_sequence, &length) in order.chunks(pages_per_sequence as usize).zip(lengths) {
            let used = KvCache::pages_for(length) as usize;
            table.extend(of_sequence.iter().enumerate().map(|(at, &page)| if at < used { page } else { u32::MAX }));
        }
        let len = (u64::from(pages) * KvCache::page_bytes(heads) / 2) as usize;
        let mut pools = [vec![f16::NAN; len], vec![f16::NAN; len]];
        let columns = heads.head_dim as usize;
        for (sequence, &length) in (0..).zip(lengths) {
            for (position, kv_head) in (0..length).flat_map(|position| (0..heads.kv_heads).map(move |kv_head| (position, kv_head))) {
                for pool in &mut pools {
                    let at = Self::place(heads, &table, pages_per_sequence, sequence, kv_head, position);
                    pool[at..][..columns].copy_from_slice(&random.f16s(columns, 2.0));
                }
            }
        }
        let on_gpu = [gpu.upload_f16(&pools[0]), gpu.upload_f16(&pools[1]), gpu.upload_u32(&table)];
        Self { heads, pages_per_sequence, table, pools, on_gpu }
    }

    /// Where a row of a pool begins.
    fn place(heads: Heads, table: &[u32], pages_per_sequence: u32, sequence: u32, kv_head: u32, position: u32) -> usize {
        let page = table[(sequence * pages_per_sequence + position / PAGE_TOKENS) as usize];
        (((page * heads.kv_heads + kv_head) * PAGE_TOKENS + position % PAGE_TOKENS) * heads.head_dim) as usize
    }

    /// The key (pool 0) or value (pool 1) of one head at one position.
    pub(crate) fn row(&self, pool: usize, sequence: u32, kv_head: u32, position: u32) -> &[f16] {
        let at = Self::place(self.heads, &self.table, self.pages_per_sequence, sequence, kv_head, position);
        &self.pools[pool][at..][..self.heads.head_dim as usize]
    }

    /// Writes one element of a key (pool 0) or a value (pool 1) to the host and to the GPU.
    pub(crate) fn set(&mut self, gpu: &Gpu, pool: usize, [sequence, kv_head, position, column]: [u32; 4], value: f16) {
        let at = Self::place(self.heads, &self.table, self.pages_per_sequence, sequence, kv_head, position);
        self.pools[pool][at + column as usize] = value;
        self.on_gpu[pool] = gpu.upload_f16(&self.pools[pool]);
    }

    pub(crate) fn on_gpu(&self) -> KvCache {
        let [keys, values, page_table] = [0, 1, 2].map(|buffer: usize| self.on_gpu[buffer].ptr());
        KvCache { keys, values, page_table, pages_per_sequence: self.pages_per_sequence }
    }
}

/// Rows as [`attend`] takes them.
pub(crate) fn slices(rows: &[Vec<f64>]) -> Vec<&[f64]> {
    rows.iter().map(Vec::as_slice).collect()
}

/// A decode step with its operands on the host and on the GPU. Cache positions past a sequence's length are NaN, and table entries past it are far
/// beyond the pool.
struct Decode {
    kernel: AttentionDecode,
    lengths: Vec<u32>,
    qkv: Vec<f16>,
    cache: PagedCache,
    output: Buffer,
    _workspace: Buffer,
    _operands: [Buffer; 2],
}

impl Decode {
    fn new(gpu: &Gpu, random: &mut Random, heads: Heads, lengths: &[u32], capacity: u32, window: u32, gaps: [u32; 2]) -> Self {
        let sequences = lengths.len() as u32;
        let [stride, output_stride] = [heads.qkv_width() + gaps[0], heads.output_width() + gaps[1]];
        let qkv = random.f16s((sequences * stride) as usize, 2.0);
        let cache = PagedCache::new(gpu, random, heads, lengths, capacity);
        let operands = [gpu.upload_f16(&qkv), gpu.upload_u32(lengths)];
        let workspace = gpu.zeroed(AttentionDecode::workspace_bytes(heads, sequences, cache.pages_per_sequence) as usize);
        let output = gpu.poisoned_f16((sequences * output_stride) as usize);
        let kernel = AttentionDecode {
            heads,
            sequences,
            context: capacity,
            window,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
            qkv: operands[0].ptr(),
            qkv_stride: stride,
            cache: cache.on_gpu(),
            output: output.ptr(),
            output_stride,
            lengths: operands[1].ptr(),
            workspace: workspace.ptr(),
        };
        Self { kernel, lengths: lengths.to_vec(), qkv, cache, output, _workspace: workspace, _operands: operands }
    }

    /// The output of the sequences that have tokens, without the gaps between its rows.
    fn reference(&self) -> Vec<f64> {
        let Heads { heads, kv_heads, head_dim } = self.kernel.heads;
        let qkv = f64s(&self.qkv);
        let with_tokens = (0..self.kernel.sequences).filter(|&sequence| self.lengths[sequence as usize] > 0);
        let rows = with_tokens.flat_map(|sequence| (0..heads).map(move |head| (sequence, head))).collect::<Vec<_>>();
        let of_head = |(sequence, head): (u32, u32)| {
            let length = self.lengths[sequence as usize];
            let first = if self.kernel.window == 0 { 0 } else { length.saturating_sub(self.kernel.window) };
            let kv_head = head / (heads / kv_heads);
            let q = &qkv[(sequence * self.kernel.qkv_stride + head * head_dim) as usize..][..head_dim as usize];
            let [keys, values] = [0, 1].map(|pool: usize| {
                (first..length).map(|position| f64s(self.cache.row(pool, sequence, kv_head, position))).collect::<Vec<_>>()
            });
            attend(q, &slices(&keys), &slices(&values), self.kernel.scale)
        };
        rows.into_par_iter().flat_map_iter(of_head).collect()
    }

    fn check(&self, output: &[f16]) {
        let what = format!("{} with lengths {:?}, window {}", self.kernel.key(), self.lengths, self.kernel.window);
        let mut valid = Vec::new();
        for (row, &length) in output.chunks(self.kernel.output_stride as usize).zip(&self.lengths) {
            let (row, gap) = row.split_at(if length == 0 { 0 } else { self.kernel.heads.output_width() as usize });
            valid.extend_from_slice(row);
            assert!(gap.iter().all(|value| value.is_nan()), "{what}: elements between the rows were written");
        }
        check(&what, &valid, &self.reference());
    }

    fn run_and_check(&self, gpu: &Gpu, sms: u16) {
        gpu.run(&self.kernel, sms);
        self.check(&gpu.download_f16(&self.output));
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn decode_is_right_at_every_head_size_and_group_ratio() {
    let gpu = Gpu::open();
    let mut random = Random::new(8);
    for head_dim in HEAD_DIMS {
        for (kv_heads, group) in [(3, 1), (2, 2), (1, 4), (2, 8), (1, 16), (1, 20)] {
            let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
            Decode::new(&gpu, &mut random, heads, &[1, 17, 300, 128], 300, 0, [0, 0]).run_and_check(&gpu, gpu.sms());
        }
    }
}

/// What distinguishes one decode step from another. One more sequence has as many tokens as there is room for.
#[derive(Debug, Clone)]
struct Step {
    heads: Heads,
    lengths: Vec<u32>,
    capacity: u32,
    window: u32,
    gaps: [u32; 2],
}

fn steps() -> impl Strategy<Value = Step> {
    let many = if is_sanitized() { 6 } else { 70 };
    let lengths = prop_oneof![2 => vec(0_u32..=1000, 0..=6), 1 => vec(0_u32..=1000, many / 2..=many)];
    let window = prop_oneof![Just(0), select(vec![1_u32, 15, 16, 64, 100, 2000])];
    (heads(4, &[1, 2, 3, 4, 8], head_dims()), extent(1000), lengths, window, [gap(9), gap(9)]).prop_map(
        |(heads, capacity, mut lengths, window, gaps)| {
            lengths.iter_mut().for_each(|length| *length %= capacity + 1);
            lengths.push(capacity);
            Step { heads, lengths, capacity, window, gaps }
        },
    )
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn decode_is_right_over_caches_of_any_length_and_window() {
    let gpu = Gpu::open();
    for_draws(100, &(steps(), any::<u64>(), select(gpu.sm_counts())), |(step, seed, sms)| {
        let Step { heads, lengths, capacity, window, gaps } = step;
        Decode::new(&gpu, &mut Random::new(seed), heads, &lengths, capacity, window, gaps).run_and_check(&gpu, sms);
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn decode_has_the_same_bits_at_every_sm_count_and_while_its_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(10);
    for (heads, kv_heads, head_dim) in [(32, 8, 64), (32, 8, 128), (8, 8, 256), (6, 2, 20)] {
        let heads = Heads { heads, kv_heads, head_dim };
        let sequences = if is_sanitized() { 4 } else { 24 };
        let lengths: Vec<u32> = (0..sequences).map(|_| random.between(1, 900)).collect();
        let decode = Decode::new(&gpu, &mut random, heads, &lengths, 900, 0, [0, 0]);
        let outputs = gpu.assert_same_bits_at_every_sm_count(&decode.kernel, &[&decode.output]);
        decode.check(&halves(&outputs[0]));
        assert_same_bits_while_the_grant_changes(&gpu, &decode.kernel, &decode.output, &outputs[0], 5);

        let launch = decode.kernel.configure(Sms(gpu.sms()), gpu.device().topology()).expect("a supported shape");
        for grid in [1, 3, launch.grid] {
            gpu.poison(&decode.output);
            let uncounted = TilesArg { progress: DevicePtr::NULL, ..gpu.tiles(&launch) };
            gpu.enqueue(&decode.kernel, &Launch { grid, ..launch }, gpu.stream(), uncounted);
            assert!(outputs[0] == gpu.download(&decode.output), "{}: {grid} blocks without a tile counter differ", decode.kernel.key());
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn decode_leaves_sequences_without_tokens_alone() {
    let gpu = Gpu::open();
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 32 };
    let decode = Decode::new(&gpu, &mut Random::new(4), heads, &[0, 0], 16, 0, [0, 0]);
    gpu.run(&decode.kernel, gpu.sms());
    assert!(gpu.download_f16(&decode.output).iter().all(|value| value.is_nan()));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_is_no_number_reaches_those_that_see_it_in_a_decode_step() {
    let gpu = Gpu::open();
    // Keys are numbered by pool 0, values by 1. One page and many, where the results of several blocks are added up.
    let spoilt = [
        (0, [1, 0, 70, 3], f16::NAN),
        (0, [2, 1, 10, 3], f16::INFINITY),
        (0, [3, 0, 650, 7], f16::NEG_INFINITY),
        (1, [4, 0, 3, 5], f16::NAN),
        (1, [5, 1, 600, 6], f16::INFINITY),
        (1, [6, 0, 0, 1], f16::NEG_INFINITY),
        // The only key of its sequence.
        (0, [7, 1, 0, 2], f16::NAN),
    ];
    for head_dim in [20, 64, 80, 128, 256] {
        let heads = Heads { heads: 8, kv_heads: 2, head_dim };
        let mut decode = Decode::new(&gpu, &mut Random::new(15), heads, &[100, 100, 90, 700, 40, 700, 65, 1, 130], 700, 0, [0, 0]);
        for (pool, place, value) in spoilt {
            decode.cache.set(&gpu, pool, place, value);
        }
        // One head's query of the last sequence.
        decode.qkv[(8 * decode.kernel.qkv_stride + 5 * head_dim + 4) as usize] = f16::NAN;
        let qkv = gpu.upload_f16(&decode.qkv);
        decode.kernel = AttentionDecode { qkv: qkv.ptr(), cache: decode.cache.on_gpu(), ..decode.kernel };
        gpu.run(&decode.kernel, gpu.sms());
        let output = gpu.download_f16(&decode.output);
        assert_as_ieee_754_says(&decode.kernel.key().to_string(), &output, &decode.reference());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_key_before_the_window_reaches_no_decode_step_whatever_it_is() {
    let gpu = Gpu::open();
    for (head_dim, value) in [(20, f16::NAN), (64, f16::NAN), (64, f16::INFINITY), (128, f16::NAN), (256, f16::NEG_INFINITY)] {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim };
        // Just before the window, in the page where it begins.
        let mut decode = Decode::new(&gpu, &mut Random::new(16), heads, &[300], 300, 100, [0, 0]);
        decode.cache.set(&gpu, 0, [0, 1, 199, 3], value);
        decode.kernel.cache = decode.cache.on_gpu();
        decode.run_and_check(&gpu, gpu.sms());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn decode_gives_a_sequence_the_same_bits_beside_any_others_and_at_any_capacity() {
    let gpu = Gpu::open();
    let mut random = Random::new(13);
    let heads = Heads { heads: 12, kv_heads: 3, head_dim: 64 };
    let lengths: Vec<u32> = (0..40).map(|_| random.between(1, 1500)).collect();
    for window in [0, 300] {
        let decode = Decode::new(&gpu, &mut random, heads, &lengths, 2000, window, [0, 0]);
        gpu.run(&decode.kernel, gpu.sms());
        let together = gpu.download_f16(&decode.output);
        let pages_per_sequence = decode.cache.pages_per_sequence + 5;
        let wider = |row: &[u32]| row.iter().copied().chain([u32::MAX; 5]).collect::<Vec<_>>();
        let table: Vec<u32> = decode.cache.table.chunks(decode.cache.pages_per_sequence as usize).flat_map(wider).collect();
        let table = gpu.upload_u32(&table);
        let cache = KvCache { page_table: table.ptr(), pages_per_sequence, ..decode.kernel.cache };
        let workspace = gpu.zeroed(AttentionDecode::workspace_bytes(heads, 40, pages_per_sequence) as usize);
        for (sequence, &length) in lengths.iter().enumerate().step_by(7) {
            // All others have become short.
            let others: Vec<u32> = (0..lengths.len()).map(|at| if at == sequence { length } else { 1 }).collect();
            let others = gpu.upload_u32(&others);
            let output = gpu.poisoned_f16(40 * heads.output_width() as usize);
            let beside_others =
                AttentionDecode { lengths: others.ptr(), output: output.ptr(), cache, workspace: workspace.ptr(), ..decode.kernel };
            gpu.run(&beside_others, 8);
            let row = |output: &[f16]| output.chunks(heads.output_width() as usize).nth(sequence).map(<[f16]>::to_vec);
            assert_eq!(row(&gpu.download_f16(&output)), row(&together), "sequence {sequence} of {length} tokens");
        }
    }
}

/// A decode step whose queries and newest keys and values are written at the very end of the launch before it, or of the one before that.
struct LateRows {
    decode: Decode,
    /// Without the newest rows.
    pools: [Vec<f16>; 2],
    qkv: Vec<f16>,
    positions: Buffer,
    sequence_of: Buffer,
    frequencies: Buffer,
}

impl LateRows {
    /// Rows that nobody reads, before those of the sequences: on 4 blocks they take hundreds of microseconds.
    const ROWS_BEFORE: usize = 2000;

    fn new(gpu: &Gpu, random: &mut Random, heads: Heads, lengths: &[u32], window: u32) -> Self {
        // One more sequence, to which rows that nobody reads go.
        let spare = lengths.len() as u32;
        let mut decode = Decode::new(gpu, random, heads, &[lengths, &[1]].concat(), 2048, window, [0, 0]);
        decode.kernel.sequences = spare;
        let mut pools = decode.cache.pools.clone();
        let mut places = vec![(0, spare); Self::ROWS_BEFORE];
        for (sequence, &length) in (0..).zip(lengths) {
            let Some(newest) = length.checked_sub(1) else {
                places.push((0, spare));
                continue;
            };
            places.push((newest, sequence));
            for kv_head in 0..heads.kv_heads {
                let at = PagedCache::place(heads, &decode.cache.table, decode.cache.pages_per_sequence, sequence, kv_head, newest);
                pools.iter_mut().for_each(|pool| pool[at..][..heads.head_dim as usize].fill(f16::NAN));
            }
        }
        let (positions, sequence_of): (Vec<u32>, Vec<u32>) = places.into_iter().unzip();
        let qkv = random.f16s(positions.len() * heads.qkv_width() as usize, 2.0);
        let frequencies: Vec<f32> = (0..heads.head_dim / 2).map(|pair| 0.9_f32.powi(pair as i32)).collect();
        let [positions, sequence_of] = [positions, sequence_of].map(|words| gpu.upload_u32(&words));
        Self { decode, pools, qkv, positions, sequence_of, frequencies: gpu.upload_f32(&frequencies) }
    }

    /// The output where each launch overlaps the end of the one before, or `apart` where none does. `grid` blocks, or as many as are launched; with a tile
    /// counter where `counted`; after another launch, which lets the next one come before it waits, where `between`.
    fn run(&self, gpu: &Gpu, apart: bool, grid: Option<u32>, counted: bool, between: Option<&Gemm>) -> Vec<f16> {
        let topology = gpu.device().topology();
        let heads = self.decode.kernel.heads;
        let qkv = gpu.upload_f16(&self.qkv);
        let [keys, values] = [0, 1].map(|pool: usize| gpu.upload_f16(&self.pools[pool]));
        let cache = KvCache { keys: keys.ptr(), values: values.ptr(), ..self.decode.kernel.cache };
        let rotary = Rotary {
            heads,
            rows: (self.qkv.len() / heads.qkv_width() as usize) as u32,
            qkv: qkv.ptr(),
            qkv_stride: heads.qkv_width(),
            positions: self.positions.ptr(),
            inverse_frequencies: self.frequencies.ptr(),
            cache: Some(cache),
            sequence_of: self.sequence_of.ptr(),
        };
        let first_row = 2 * Self::ROWS_BEFORE as u64 * u64::from(heads.qkv_width());
        let kernel = AttentionDecode { qkv: qkv.ptr().offset(first_row), cache, ..self.decode.kernel };
        gpu.poison(&self.decode.output);

        let uncounted = |launch: &Launch| TilesArg { progress: DevicePtr::NULL, ..gpu.tiles(launch) };
        let enqueue = |kernel: &dyn Kernel, launch: &Launch, tiles: TilesArg| {
            if apart {
                gpu.device().synchronize(gpu.stream()).expect("the launch before ends");
                gpu.enqueue(kernel, launch, gpu.stream(), tiles);
            } else {
                gpu.enqueue_overlapping(kernel, launch, gpu.stream(), tiles);
            }
        };
        let launch = Launch { grid: 4, ..rotary.configure(Sms(gpu.sms()), topology).expect("a supported shape") };
        gpu.enqueue(&rotary, &launch, gpu.stream(), uncounted(&launch));
        if let Some(gemm) = between {
            let launch = gemm.configure(Sms(gpu.sms()), topology).expect("a supported shape");
            enqueue(gemm, &launch, uncounted(&launch));
        }
        let launch = kernel.configure(Sms(gpu.sms()), topology).expect("a supported shape");
        let launch = Launch { grid: grid.unwrap_or(launch.grid), elastic: counted, ..launch };
        enqueue(&kernel, &launch, if counted { gpu.tiles(&launch) } else { uncounted(&launch) });
        gpu.device().synchronize(gpu.stream()).expect("the kernels run");
        gpu.download_f16(&self.decode.output)
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn decode_waits_for_queries_and_newest_rows_that_are_written_late() {
    let gpu = Gpu::open();
    let mut random = Random::new(14);
    let operands = [8, 256, 8].map(|rows| gpu.upload_f16(&random.f16s(rows * 256, 1.0)));
    let gemm = Gemm::new([8, 256, 256], operands[0].ptr(), operands[1].ptr(), operands[2].ptr(), Epilogue::NONE);
    // Around the ends of pages and chunks, within the ring and beyond it.
    let lengths: &[u32] = if is_sanitized() { &[1, 64, 65, 0, 700] } else { &[1, 63, 64, 65, 0, 127, 129, 193, 512, 513, 700, 2048] };
    let is_tried = |head_dim: &u32| head_dim.is_multiple_of(2) && (!is_sanitized() || [64, 256].contains(head_dim));
    for head_dim in HEAD_DIMS.into_iter().filter(is_tried) {
        for window in [0, 100] {
            let heads = Heads { heads: 8, kv_heads: 2, head_dim };
            let late = LateRows::new(&gpu, &mut random, heads, lengths, window);
            let expected = late.run(&gpu, true, None, false, None);
            for (row, &length) in expected.chunks(heads.output_width() as usize).zip(lengths) {
                assert!(row.iter().all(|value| value.is_nan() == (length == 0)), "head size {head_dim}, window {window}, length {length}");
            }
            for (grid, counted) in [(None, false), (Some(3), false), (None, true), (Some(3), true)] {
                for between in [None, Some(&gemm)] {
                    let bits = |output: &[f16]| output.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    assert!(
                        bits(&late.run(&gpu, false, grid, counted, between)) == bits(&expected),
                        "head size {head_dim}, window {window}, {grid:?} blocks, counted: {counted}, a launch between: {}",
                        between.is_some()
                    );
                }
            }
        }
    }
}
