//! The scheduler against a model whose next token is a hash of all tokens that its pages hold: a page given to two sequences, a token computed twice or
//! left out, or a token credited to another request changes what is drawn from there on.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;

/// Tokens of the hashing model.
const VOCABULARY: u64 = 50;

/// Computes plans on pages of tokens, as a device does on pages of keys and values.
struct Hashing {
    page_tokens: usize,
    pages: Vec<Option<u32>>,
    tables: Vec<Vec<u32>>,
    last: Vec<u32>,
}

impl Hashing {
    fn new(limits: Limits) -> Self {
        let page_tokens = limits.page_tokens as usize;
        let slots = limits.slots as usize;
        Self { page_tokens, pages: vec![None; limits.pages as usize * page_tokens], tables: vec![Vec::new(); slots], last: vec![0; slots] }
    }

    fn write(&mut self, slot: u32, position: usize, token: u32) {
        let page = self.tables[slot as usize][position / self.page_tokens] as usize;
        self.pages[page * self.page_tokens + position % self.page_tokens] = Some(token);
    }

    /// The token after the first `length` of a slot.
    fn next(&self, slot: u32, length: usize, uniform: f32) -> u32 {
        let table = &self.tables[slot as usize];
        let token = |at: usize| self.pages[table[at / self.page_tokens] as usize * self.page_tokens + at % self.page_tokens];
        hash((0..length).map(|at| token(at).expect("a token that was computed")), uniform)
    }

    fn run(&mut self, plan: &StepPlan) -> Vec<u32> {
        for NewPages { slot, first, pages } in &plan.new_pages {
            let table = &mut self.tables[*slot as usize];
            table.truncate(*first);
            assert_eq!(table.len(), *first, "pages follow one another");
            table.extend(pages);
        }
        let mut drawn = Vec::new();
        for decode in &plan.decodes {
            self.write(decode.slot, decode.position, self.last[decode.slot as usize]);
            drawn.push(self.next(decode.slot, decode.position + 1, decode.draw.uniform));
        }
        for Prefill { slot, start, tokens, draw } in &plan.prefills {
            for (position, &token) in (*start..).zip(tokens) {
                self.write(*slot, position, token);
            }
            drawn.extend(draw.map(|draw| self.next(*slot, start + tokens.len(), draw.uniform)));
        }
        for ((slot, _), &token) in plan.draws().zip(&drawn) {
            self.last[slot as usize] = token;
        }
        drawn
    }
}

fn hash(tokens: impl Iterator<Item = u32>, uniform: f32) -> u32 {
    let folded = tokens.fold(u64::from(uniform.to_bits()), |hash, token| {
        let mixed = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 29
    });
    (folded % VOCABULARY) as u32
}

/// What a request gets alone, by definition.
fn alone(request: &Request, max_sequence: usize) -> (Vec<u32>, Stop) {
    let (mut tokens, mut uniform) = (request.prompt.clone(), Uniform::new(request.seed));
    let mut drawn = Vec::new();
    loop {
        if drawn.len() == request.max_tokens.get() {
            return (drawn, Stop::MaxTokens);
        }
        if tokens.len() > max_sequence {
            return (drawn, Stop::Full);
        }
        let token = hash(tokens.iter().copied(), uniform.draw());
        if request.stop_tokens.contains(&token) {
            return (drawn, Stop::EndOfSequence);
        }
        tokens.push(token);
        drawn.push(token);
    }
}

/// Checks every step of a run, and keeps what came out.
struct Run {
    scheduler: Scheduler,
    model: Hashing,
    in_flight: VecDeque<Vec<u32>>,
    outputs: BTreeMap<RequestId, (Vec<u32>, Option<Stop>)>,
    /// Requests in the order in which they first had a slot.
    admitted: Vec<RequestId>,
    steps: usize,
}

impl Run {
    fn new(limits: Limits) -> Self {
        let scheduler = Scheduler::new(limits).unwrap();
        Self {
            scheduler,
            model: Hashing::new(limits),
            in_flight: VecDeque::new(),
            outputs: BTreeMap::new(),
            admitted: Vec::new(),
            steps: 0,
        }
    }

    fn submit(&mut self, request: &Request) -> RequestId {
        let id = self.scheduler.submit(request.clone()).unwrap();
        self.outputs.insert(id, Default::default());
        id
    }

    /// Plans until `ahead` steps are in flight, and completes the oldest.
    fn step(&mut self, ahead: usize) {
        while self.in_flight.len() < ahead {
            let Some(plan) = self.scheduler.plan() else { break };
            self.check(&plan);
            self.in_flight.push_back(self.model.run(&plan));
            self.steps += 1;
        }
        let Some(tokens) = self.in_flight.pop_front() else {
            assert!(self.scheduler.is_idle(), "requests wait and nothing is planned");
            return;
        };
        for output in self.scheduler.complete(&tokens) {
            match output {
                Output::Token(id, token) => self.outputs.get_mut(&id).unwrap().0.push(token),
                Output::Finished(id, stop) => assert_eq!(self.outputs.get_mut(&id).unwrap().1.replace(stop), None, "finished once"),
            }
        }
        for &id in &self.scheduler.running {
            if !self.admitted.contains(&id) {
                self.admitted.push(id);
            }
        }
    }

    fn check(&self, plan: &StepPlan) {
        let Limits { slots, step_tokens, .. } = self.scheduler.limits;
        assert!((1..=step_tokens as usize).contains(&plan.rows()), "{} rows", plan.rows());
        let mut used: Vec<u32> =
            plan.decodes.iter().map(|decode| decode.slot).chain(plan.prefills.iter().map(|prefill| prefill.slot)).collect();
        used.sort_unstable();
        assert!(used.windows(2).all(|pair| pair[0] < pair[1]) && used.iter().all(|&slot| slot < slots), "slots {used:?}");
        assert!(self.scheduler.running() <= slots as usize);
        let running = &self.scheduler.running;
        assert!(running.iter().chain(&self.scheduler.waiting).is_sorted(), "whoever has a slot came before whoever waits");
        let held: Vec<u32> = self.scheduler.sequences.values().flat_map(|sequence| sequence.pages.numbers()).copied().collect();
        assert_eq!(held.len() + self.scheduler.pool.free(), self.scheduler.limits.pages as usize, "no page is lost");
    }
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { prompt, max_tokens: NonZeroUsize::new(max_tokens).unwrap(), sampling: Sampling::GREEDY, seed: 0, stop_tokens: [].into() }
}

fn limits() -> impl Strategy<Value = Limits> {
    (1_u32..6, 0_u32..12, 8_u32..24, 1_u32..5, 4_usize..12).prop_map(|(slots, spare, pages, page_tokens, max_sequence)| Limits {
        slots,
        step_tokens: slots + spare,
        pages,
        page_tokens,
        max_sequence,
    })
}

/// Requests that fit alone into the smallest pool, each with how many steps after the one before it arrives.
fn requests() -> impl Strategy<Value = Vec<(Request, usize)>> {
    let parts = (prop::collection::vec(0..VOCABULARY as u32, 1..5), 1_usize..6, any::<u64>(), prop::option::of(0..VOCABULARY as u32));
    let requests = parts.prop_map(|(prompt, max_tokens, seed, stop)| Request {
        seed,
        stop_tokens: stop.into_iter().collect(),
        ..request(prompt, max_tokens)
    });
    prop::collection::vec((requests, 0_usize..4), 1..25)
}

proptest! {
    #[test]
    fn every_request_gets_the_tokens_that_it_gets_alone(limits in limits(), requests in requests(), ahead in 1_usize..4) {
        let mut run = Run::new(limits);
        let mut ids = Vec::new();
        for (request, wait) in &requests {
            (0..*wait).for_each(|_| run.step(ahead));
            ids.push(run.submit(request));
        }
        let work: usize = requests.iter().map(|(request, _)| request.prompt.len() + request.max_tokens.get()).sum();
        // Even if each token needed everything before it to be computed anew.
        let enough = 20 * work + 100;
        while !run.scheduler.is_idle() {
            run.step(ahead);
            prop_assert!(run.steps < enough, "no end after {} steps", run.steps);
        }
        for ((request, _), id) in requests.iter().zip(&ids) {
            let (tokens, stop) = alone(request, limits.max_sequence);
            prop_assert_eq!(&run.outputs[id], &(tokens, Some(stop)), "request {:?}", id);
        }
        prop_assert!(run.admitted.is_sorted(), "first come, first served: {:?}", run.admitted);
        prop_assert_eq!(run.scheduler.pool.free(), limits.pages as usize, "an idle scheduler holds no page");
    }
}

const ROOMY: Limits = Limits { slots: 4, step_tokens: 8, pages: 64, page_tokens: 4, max_sequence: 100 };

#[test]
fn a_long_prompt_comes_in_chunks_beside_requests_that_decode() {
    let mut scheduler = Scheduler::new(ROOMY).unwrap();
    scheduler.submit(request(vec![1], 10)).unwrap();
    scheduler.plan().unwrap();
    scheduler.submit(request(vec![2; 20], 1)).unwrap();
    let chunks: Vec<_> = (0..3)
        .map(|_| {
            let plan = scheduler.plan().unwrap();
            assert_eq!(plan.decodes.len(), 1, "the first request is not held up");
            let [Prefill { start, tokens, draw, .. }] = &plan.prefills[..] else { panic!("{plan:?}") };
            (*start, tokens.len(), draw.is_some())
        })
        .collect();
    assert_eq!(chunks, [(0, 7, false), (7, 7, false), (14, 6, true)]);
}

#[test]
fn the_youngest_gives_way_when_pages_run_out_and_is_computed_anew() {
    let limits = Limits { slots: 2, step_tokens: 8, pages: 4, page_tokens: 2, max_sequence: 100 };
    let mut run = Run::new(limits);
    let requests = [request(vec![1, 2, 3], 5), request(vec![4], 5)];
    let ids = requests.each_ref().map(|request| run.submit(request));
    while !run.scheduler.is_idle() {
        run.step(2);
    }
    assert!(run.scheduler.preemptions() > 0, "the two need 4 and 3 of the 4 pages");
    for (request, id) in requests.iter().zip(ids) {
        assert_eq!(run.outputs[&id], (alone(request, limits.max_sequence).0, Some(Stop::MaxTokens)));
    }
}

#[test]
fn a_slot_is_free_for_the_next_request_as_soon_as_the_last_token_is_planned() {
    let mut scheduler = Scheduler::new(Limits { slots: 1, step_tokens: 8, ..ROOMY }).unwrap();
    scheduler.submit(request(vec![1, 2], 1)).unwrap();
    scheduler.submit(request(vec![3], 1)).unwrap();
    let slots = [scheduler.plan(), scheduler.plan()].map(|plan| plan.unwrap().prefills[0].slot);
    assert_eq!((slots, scheduler.in_flight()), ([0, 0], 2), "before any token came back");
    assert_eq!(scheduler.plan(), None);
}

#[test]
fn requests_that_will_grow_no_further_hold_no_page_back_from_others() {
    let mut scheduler = Scheduler::new(Limits { pages: 4, ..ROOMY }).unwrap();
    (0..4).for_each(|_| assert!(scheduler.submit(request(vec![1, 2], 3)).is_ok()));
    assert_eq!(scheduler.plan().unwrap().prefills.len(), 4, "four pages for four requests of a page each");
}

#[test]
fn what_can_never_be_served_is_refused_with_the_reason() {
    let mut scheduler = Scheduler::new(Limits { pages: 4, ..ROOMY }).unwrap();
    let refused = [request(vec![], 1), request(vec![0; 101], 1), request(vec![0; 9], 9)];
    let errors = refused.map(|request| scheduler.submit(request).unwrap_err());
    assert_eq!(errors[0], SubmitError::EmptyPrompt);
    assert_eq!(errors[1], SubmitError::TooLong { tokens: 101, limit: 100 });
    assert_eq!(errors[2], SubmitError::TooLarge { prompt: 9, drawn: 9, needed: 5, pages: 4 });
    assert!(scheduler.submit(request(vec![0; 9], 8)).is_ok(), "the last token needs no room");
    for limits in [Limits { slots: 0, ..ROOMY }, Limits { pages: 0, ..ROOMY }, Limits { step_tokens: 3, ..ROOMY }] {
        assert!(Scheduler::new(limits).is_err(), "{limits:?}");
    }
}
