//! Lines 7 to 10: whole forward passes and decode steps, with random weights, as CUDA graphs.

use anyhow::Result;
use smidgen::models::{Direct, ModelSource};
use smidgen::serve::Workload;
use smidgen_runtime::launch::Work;

use super::Bandwidth;
use crate::bench::{Bench, Case, Lane, PeakOf, Replay};
use crate::peers::Peers;
use crate::results::{TargetOf, Unit};

/// A pass that takes this many replays to make one sample.
const REPLAYS: u32 = 8;

const BATCH: u32 = 8;
const LENGTH: u32 = 128;

/// A model's request, captured.
struct Pass {
    lane: Lane,
    replay: Replay,
    /// Of all launches together.
    work: Work,
    /// Holds the buffers that the graph works on.
    _workload: Box<dyn Workload>,
}

impl Pass {
    fn new(bench: &Bench, model: &str, sms: u16, batch: u32, length: u32) -> Result<Self> {
        let source = ModelSource::find(model)?;
        let mut lane = bench.lane(sms)?;
        let mut workload = source.workload(&mut lane.session, &mut Direct, batch, length)?;
        lane.session.start_recording();
        workload.enqueue(&mut lane.session)?;
        let launches = lane.session.finish_recording();
        let sum = |of: fn(&Work) -> u64| launches.iter().map(|launch| of(&launch.work())).sum();
        let work = Work { flops: sum(|work| work.flops), bytes: sum(|work| work.bytes) };
        let replay = lane.replay(1, |session, _| workload.enqueue(session))?;
        Ok(Self { lane, replay, work, _workload: workload })
    }

    fn time(&mut self) -> Result<std::time::Duration> {
        self.replay.time_of(&mut self.lane, REPLAYS)
    }
}

/// Line 7.
pub fn bert_base(bench: &mut Bench, peers: &mut Option<Peers>) -> Result<()> {
    against_torch(bench, peers, 7, "bert-base", "BERT-base forward b8 s128", (1.35, TargetOf::Ratio), |work| PeakOf::Flops(work.flops))
}

/// Line 8.
pub fn llama(bench: &mut Bench, peers: &mut Option<Peers>) -> Result<()> {
    let work = "Llama-3.2-1B decode step b8 context 128";
    against_torch(bench, peers, 8, "llama-3.2-1b", work, (0.75, TargetOf::Ours), |work| PeakOf::Bytes(work.bytes))
}

fn against_torch(
    bench: &mut Bench,
    peers: &mut Option<Peers>,
    row: u8,
    model: &str,
    work: &str,
    (target, target_of): (f64, TargetOf),
    peak_of: fn(Work) -> PeakOf,
) -> Result<()> {
    let mut ours = Pass::new(bench, model, bench.all_sms(), BATCH, LENGTH)?;
    let (peer_is, note) = crate::prepare(peers, model);
    if let Some(compared) = bench.compare(row, work, || crate::with_sample(ours.time()?, peers, model, note.is_none()))? {
        let case = Case {
            row,
            work: work.to_owned(),
            sms: bench.all_sms(),
            unit: Unit::Milliseconds,
            amounts: [1e3; 2],
            target,
            target_of,
            peer_is,
            beside: Vec::new(),
            note,
            peak_of: Some(peak_of(ours.work)),
        };
        bench.judge(case, &compared);
    }
    crate::give_back(peers, model);
    Ok(())
}

/// Line 9. A step reads every weight once but the embedding table, of which it reads one row.
pub fn mistral(bench: &mut Bench) -> Result<()> {
    let smidgen::config::ModelConfig::Decoder(config) = smidgen::presets::MISTRAL_7B else { return Ok(()) };
    let parameters = smidgen::weights::names::parameters(&smidgen::presets::MISTRAL_7B);
    let elements: usize = parameters.iter().map(|parameter| parameter.shape(&smidgen::presets::MISTRAL_7B).iter().product::<usize>()).sum();
    let bytes = 2.0 * (elements - config.vocab * config.hidden) as f64;
    let mut ours = Pass::new(bench, "mistral-7b", bench.all_sms(), 1, LENGTH)?;
    let mut lane = bench.lane(bench.all_sms())?;
    let bandwidth = Bandwidth::new(bench, &mut lane)?;
    let work = "Mistral-7B decode step b1 context 128";
    let Some(compared) = bench.compare(9, work, || Ok(vec![ours.time()?, bandwidth.replay.time(&mut lane)?]))? else { return Ok(()) };
    let case = Case {
        row: 9,
        work: work.to_owned(),
        sms: bench.all_sms(),
        unit: Unit::Milliseconds,
        amounts: [1e3, Bandwidth::milliseconds_for(bytes)],
        target: 0.88,
        target_of: TargetOf::Ratio,
        peer_is: format!("{:.2} GB of weights at the rate of reading 2 GiB with nothing else to do", bytes / 1e9),
        beside: Vec::new(),
        note: None,
        peak_of: Some(PeakOf::Bytes(ours.work.bytes)),
    };
    bench.judge(case, &compared);
    Ok(())
}

/// Line 10.
pub fn sm_time(bench: &mut Bench) -> Result<()> {
    const FEW: u16 = 16;
    let all = bench.all_sms();
    let mut few = Pass::new(bench, "bert-base", FEW, BATCH, LENGTH)?;
    let mut whole = Pass::new(bench, "bert-base", all, BATCH, LENGTH)?;
    let work = "SM-time of one BERT-base inference of a batch of 8, s128";
    let Some(compared) = bench.compare(10, work, || Ok(vec![few.time()?, whole.time()?]))? else { return Ok(()) };
    let per_inference = |sms: u16| 1e3 * f64::from(sms) / f64::from(BATCH);
    let case = Case {
        row: 10,
        work: work.to_owned(),
        sms: FEW,
        unit: Unit::SmMilliseconds,
        amounts: [per_inference(FEW), per_inference(all)],
        target: 1.7,
        target_of: TargetOf::Ratio,
        peer_is: format!("the same on {all} SMs"),
        beside: Vec::new(),
        note: None,
        peak_of: Some(PeakOf::Flops(few.work.flops)),
    };
    bench.judge(case, &compared);
    Ok(())
}
