//! Lines 5 and 6: prefill against PyTorch's best back end, decode against the rate at which the cache can be read.

use anyhow::Result;
use smidgen::kernels::attention::{AttentionDecode, AttentionPrefill, Heads, KvCache};
use smidgen_runtime::device::Buffer;
use smidgen_runtime::launch::Kernel;

use super::Bandwidth;
use crate::bench::{Bench, Case};
use crate::peers::Peers;
use crate::results::{TargetOf, Unit};

/// The peer's name for it, sequences, heads, length, head size, causal, target.
const PREFILLS: [(&str, u32, u32, u32, u32, bool, f64); 2] =
    [("attention-causal-4096", 1, 32, 4096, 128, true, 0.85), ("attention-8x128", 8, 12, 128, 64, false, 1.2)];

const DECODE_BATCHES: [u32; 2] = [8, 64];
const CONTEXT: u32 = 4096;
/// Mistral-7B's.
const DECODE_HEADS: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 128 };

pub fn prefill(bench: &mut Bench, peers: &mut Option<Peers>) -> Result<()> {
    let mut lane = bench.lane(bench.all_sms())?;
    for (peer, sequences, heads, length, head_dim, causal, target) in PREFILLS {
        let heads = Heads { heads, kv_heads: heads, head_dim };
        let rows = u64::from(sequences * length);
        let elements = rows * u64::from(heads.qkv_width());
        let inputs =
            (0..bench.sets(2 * elements) as u64).map(|set| bench.random(&mut lane, elements, 1.0, set)).collect::<Result<Vec<_>>>()?;
        let output = bench.random(&mut lane, rows * u64::from(heads.output_width()), 1.0, 99)?;
        let starts = bench.words(&lane, (0..sequences).map(|sequence| sequence * length))?;
        let lengths = bench.words(&lane, (0..sequences).map(|_| length))?;
        let kernels: Vec<AttentionPrefill> = inputs
            .iter()
            .map(|qkv| AttentionPrefill {
                heads,
                sequences,
                max_length: length,
                tokens: sequences * length,
                rows: sequences * length,
                causal,
                window: 0,
                scale: 1.0 / (head_dim as f32).sqrt(),
                qkv: qkv.ptr(),
                qkv_stride: heads.qkv_width(),
                output: output.ptr(),
                output_stride: heads.output_width(),
                starts: starts.ptr(),
                lengths: lengths.ptr(),
            })
            .collect();
        let ours = lane.replay_kernels(&kernels)?;
        let form = if causal { "causal " } else { "" };
        let work = format!("attention prefill {form}b{sequences} s{length} h{} d{head_dim}", heads.heads);
        let (peer_is, note) = crate::prepare(peers, peer);
        if let Some(compared) = bench.compare(5, &work, || crate::with_sample(ours.time(&mut lane)?, peers, peer, note.is_none()))? {
            // Half of the scores are masked; both sides count the work by the same formula.
            let flops = kernels[0].work().flops as f64 / 1e12;
            let case = Case {
                row: 5,
                work,
                sms: lane.sms,
                unit: Unit::Tflops,
                amounts: [flops; 2],
                target,
                target_of: TargetOf::Ratio,
                peer_is,
                beside: Vec::new(),
                note,
                peak_of: None,
            };
            bench.judge(case, &compared);
        }
        crate::give_back(peers, peer);
    }
    Ok(())
}

pub fn decode(bench: &mut Bench) -> Result<()> {
    let mut lane = bench.lane(bench.all_sms())?;
    let bandwidth = Bandwidth::new(bench, &mut lane)?;
    let heads = DECODE_HEADS;
    for sequences in DECODE_BATCHES {
        let pages_per_sequence = KvCache::pages_for(CONTEXT);
        let pool_bytes = u64::from(sequences * pages_per_sequence) * KvCache::page_bytes(heads);
        let caches =
            (0..bench.sets(2 * pool_bytes) as u64).map(|set| bench.random(&mut lane, pool_bytes, 1.0, set)).collect::<Result<Vec<_>>>()?;
        // Pages of one sequence lie apart, as a pool that has been used for a while hands them out.
        let page_table =
            bench.words(&lane, (0..sequences).flat_map(|sequence| (0..pages_per_sequence).map(move |page| page * sequences + sequence)))?;
        let workspace = Buffer::new(&bench.device, AttentionDecode::workspace_bytes(heads, sequences, pages_per_sequence))?;
        bench.device.fill(lane.session.stream(), workspace.ptr(), 0, workspace.bytes())?;
        let qkv = bench.random(&mut lane, u64::from(sequences * heads.qkv_width()), 1.0, 98)?;
        let output = bench.random(&mut lane, u64::from(sequences * heads.output_width()), 1.0, 99)?;
        let lengths = bench.words(&lane, (0..sequences).map(|_| CONTEXT))?;
        let kernels: Vec<AttentionDecode> = caches
            .iter()
            .map(|cache| AttentionDecode {
                heads,
                sequences,
                context: CONTEXT,
                window: 0,
                scale: 1.0 / (heads.head_dim as f32).sqrt(),
                qkv: qkv.ptr(),
                qkv_stride: heads.qkv_width(),
                cache: KvCache {
                    keys: cache.ptr(),
                    values: cache.ptr().offset(pool_bytes),
                    page_table: page_table.ptr(),
                    pages_per_sequence,
                },
                output: output.ptr(),
                output_stride: heads.output_width(),
                lengths: lengths.ptr(),
                workspace: workspace.ptr(),
            })
            .collect();
        let ours = lane.replay_kernels(&kernels)?;
        let work = format!("attention decode b{sequences} h{}/{} d{} context {CONTEXT}", heads.heads, heads.kv_heads, heads.head_dim);
        let Some(compared) = bench.compare(6, &work, || Ok(vec![ours.time(&mut lane)?, bandwidth.replay.time(&mut lane)?]))? else {
            continue;
        };
        let case = Case {
            row: 6,
            work,
            sms: lane.sms,
            unit: Unit::Gbytes,
            // Keys and values alone: what must be read whatever the kernel.
            amounts: [2.0 * pool_bytes as f64 / 1e9, Bandwidth::AMOUNT],
            target: 0.8,
            target_of: TargetOf::Ratio,
            peer_is: Bandwidth::NAME.to_owned(),
            beside: Vec::new(),
            note: None,
            peak_of: None,
        };
        bench.judge(case, &compared);
    }
    Ok(())
}
