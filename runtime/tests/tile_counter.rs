//! A model checker for the counter from which thread blocks take tiles (`TileQueue` in kernels/elastic.cuh).
//!
//! A GPU test sees the interleavings that happen to occur; this one goes through all of them, for launches so small that they can be counted. Each worker of an
//! owner's launch, and of joiners' launches, is a machine that makes one access to device memory in a step, in the order in which elastic.cuh makes them; a
//! state is what the counter's words hold and where each worker stands. From the first state, every step of every worker is tried, until no state is new.
//! Every step is checked: no tile is taken twice, by a launch that it is not of, or counted as done before it is. And from every state the last one, where
//! all launches have ended and the counter is ready for the next, must be within reach: then no interleaving hangs, so long as every worker gets its turn.
//!
//! What the model leaves out, or lets happen more often than it does:
//! - The grant answers each time as it likes, which stands for any number of changes at any time.
//! - Memory is sequentially consistent; that the fences of elastic.cuh are enough for it is not shown here. `Flaw::LooksBeforeItIsIn` is what one is for.
//! - A tile is done as late as may be: an owner's just before its worker ends, behind all that this does to the counter; a joiner's just before it is counted.
//! - Steps that touch no word that others use take no time. Workers of one launch that stand alike are not told apart.
//! - A joiner may begin at any time, even before everything that precedes its owner has ended, which the host never lets happen.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

const MOST_WORKERS: usize = 5;
const MOST_EPOCHS: usize = 2;
/// `GIVEN_BACK_TILES`: more than workers can be that give a tile back at the same time.
const PLACES: u8 = 4;
/// `GIVEN_BACK_ENOUGH`.
const ENOUGH: u8 = 2;

/// The word that tells a launch's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
struct Taken {
    epoch: u8,
    given_back: u8,
    count: u8,
}

/// The words of a `TileProgress`. `finished`, `sent_away` and `left` share one, so that one atomic changes all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Counter {
    taken: Taken,
    finished: u8,
    sent_away: u8,
    left: u8,
    joined: u8,
    ring_begin: u8,
    ring_end: u8,
    ring: [u8; PLACES as usize],
}

/// The access that a worker makes next, by the function of elastic.cuh that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// `take`: reads the grant. A worker that has not begun stands here, too.
    Take,
    /// The same while a tile is under way that may be given back: `take`, or `should_give_back`, reads the grant.
    Work,
    /// `should_give_back`: reads `taken`.
    LookForFresh,
    /// `is_last_to_stay`: counts itself as sent away, and takes that back. `asked`: for `should_give_back`, not for `take`.
    SendAway { asked: bool },
    Stay { asked: bool },
    /// `is_in`: counts itself in, reads `taken`, and counts itself out again if there is nothing for it.
    Enter,
    Look,
    Withdraw,
    /// `take_fresh`.
    TakeFresh,
    /// `take_given_back`: reads `taken`, then compares and swaps.
    ReadTaken,
    TakeGivenBack { seen: Taken },
    /// `out_of_ring`.
    BeginRing,
    OutOfRing { place: u8 },
    /// `give_back`.
    EndRing,
    IntoRing { place: u8 },
    CountGivenBack,
    /// `leave`, of every worker; of a joiner's that is in; and of the owner's last.
    Leave,
    LeaveJoined,
    AwaitFinished,
    AwaitJoined,
    ReadEpoch,
    ResetFinished { epoch: u8 },
    ResetDeparted { epoch: u8 },
    ResetTaken { epoch: u8 },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Worker {
    /// Index into [`Model::launches`].
    launch: u8,
    step: Step,
    /// One bit for each tile that it took and has not given back; their number is `taken_`.
    held: u8,
    /// The tile that was taken last, while it may be given back.
    last: u8,
    sent_away: bool,
    joined: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    counter: Counter,
    /// One bit for each tile of each epoch that is done to the end.
    done: [u8; MOST_EPOCHS],
    workers: [Worker; MOST_WORKERS],
}

#[derive(Debug, Clone, Copy)]
struct Launch {
    joins: bool,
    epoch: u8,
    workers: u8,
}

const fn owner(epoch: u8, workers: u8) -> Launch {
    Launch { joins: false, epoch, workers }
}

const fn joiner(epoch: u8, workers: u8) -> Launch {
    Launch { joins: true, epoch, workers }
}

/// A mistake put into the protocol, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Who ends the launch does not wait for joiners that are in.
    ForgetsWhoIsIn,
    /// A joiner reads `taken` before it counts itself in: what the hardware might do without the fence between the two.
    LooksBeforeItIsIn,
    /// `is_last_to_stay` always says no.
    NobodyStays,
    /// Who gives a tile back leaves, though the last fresh one may have gone meanwhile.
    NobodyComesForTheTile,
    /// Who ends the launch does not wait until all tiles are counted as finished.
    ForgetsWhatIsNotFinished,
}

/// What is explored.
#[derive(Clone, Copy)]
struct Model {
    launches: &'static [Launch],
    /// Of each epoch.
    tiles: u8,
    /// What the grant may answer.
    grant: &'static [bool],
    gives_back: bool,
    flaw: Option<Flaw>,
}

const ALWAYS: &[bool] = &[true];
const NEVER: &[bool] = &[false];
const CHANGING: &[bool] = &[true, false];

/// What went wrong, and the shortest way there: each worker as it stood before its step.
#[derive(Debug)]
struct Wrong {
    what: &'static str,
    way: Vec<Worker>,
}

impl Model {
    fn first(&self) -> State {
        let mut places = self.launches.iter().zip(0..).flat_map(|(launch, index)| (0..launch.workers).map(move |_| (index, Step::Take)));
        let workers = [(); MOST_WORKERS].map(|()| {
            let (launch, step) = places.next().unwrap_or((u8::MAX, Step::Ended));
            Worker { launch, step, held: 0, last: 0, sent_away: false, joined: false }
        });
        assert!(places.next().is_none() && self.launches.iter().all(|launch| usize::from(launch.epoch) < MOST_EPOCHS));
        State { counter: Counter::default(), done: [0; MOST_EPOCHS], workers }
    }

    /// Whether all blocks of all owners before `epoch` have ended, as stream order has it; `epoch` ones are then complete.
    fn precedes(&self, state: &State, epoch: u8) -> bool {
        let is_earlier = |worker: &Worker| self.launches.get(usize::from(worker.launch)).is_some_and(|of| !of.joins && of.epoch < epoch);
        state.workers.iter().all(|worker| worker.step == Step::Ended || !is_earlier(worker))
    }

    /// Puts the states to which the next access of worker `who` may lead into `next`. One that changes nothing, as where a worker waits, leads nowhere.
    fn step(&self, state: &State, who: usize, next: &mut Vec<State>) -> Result<(), &'static str> {
        let Worker { step, launch, .. } = state.workers[who];
        let Some(&Launch { joins, epoch, workers }) = self.launches.get(usize::from(launch)) else { return Ok(()) };
        let mut after = *state;
        let State { counter, done, workers: all } = &mut after;
        let me = &mut all[who];
        let touches_tiles = matches!(step, Step::TakeFresh | Step::TakeGivenBack { .. } | Step::CountGivenBack | Step::ResetTaken { .. });
        if touches_tiles && counter.taken.epoch != epoch {
            return Err("a worker changed the tiles of another launch");
        }
        let mut tile = None;
        me.step = match step {
            Step::Take | Step::Work => {
                if joins || self.precedes(state, epoch) {
                    self.read_grant(state, who, next);
                }
                return Ok(());
            }
            Step::LookForFresh if counter.taken.count >= self.tiles || counter.taken.given_back >= ENOUGH => Step::Work,
            Step::LookForFresh if joins => return self.wanted_back(after, who, next),
            Step::LookForFresh => Step::SendAway { asked: true },
            Step::SendAway { asked } => {
                counter.sent_away += 1;
                let is_last = counter.sent_away >= workers && self.flaw != Some(Flaw::NobodyStays);
                match asked {
                    _ if is_last => Step::Stay { asked },
                    true => return self.wanted_back(after, who, next),
                    false => Step::Leave,
                }
            }
            Step::Stay { asked } => {
                counter.sent_away -= 1;
                if asked { Step::Take } else { Step::TakeFresh }
            }
            Step::Enter => {
                counter.joined += 1;
                me.joined = self.flaw == Some(Flaw::LooksBeforeItIsIn);
                if me.joined { Step::TakeFresh } else { Step::Look }
            }
            Step::Look => {
                let Taken { epoch: now, given_back, count } = counter.taken;
                let has_tiles = now == epoch && (count < self.tiles || given_back > 0);
                let is_in = self.flaw != Some(Flaw::LooksBeforeItIsIn);
                me.joined = has_tiles && is_in;
                match (has_tiles, is_in) {
                    (true, true) => Step::TakeFresh,
                    (false, true) => Step::Withdraw,
                    (true, false) => Step::Enter,
                    (false, false) => Step::Leave,
                }
            }
            Step::Withdraw => {
                counter.joined -= 1;
                Step::Leave
            }
            Step::TakeFresh => {
                tile = Some(counter.taken.count).filter(|&tile| tile < self.tiles);
                counter.taken.count += 1;
                Step::ReadTaken
            }
            Step::ReadTaken if counter.taken.given_back == 0 => Step::Leave,
            Step::ReadTaken => Step::TakeGivenBack { seen: counter.taken },
            Step::TakeGivenBack { seen } if counter.taken == seen => {
                counter.taken.given_back -= 1;
                Step::BeginRing
            }
            Step::TakeGivenBack { .. } if counter.taken.given_back == 0 => Step::Leave,
            Step::TakeGivenBack { .. } => Step::TakeGivenBack { seen: counter.taken },
            Step::BeginRing => {
                let place = counter.ring_begin;
                counter.ring_begin = (place + 1) % PLACES;
                Step::OutOfRing { place }
            }
            Step::OutOfRing { place } => {
                tile = std::mem::take(&mut counter.ring[usize::from(place)]).checked_sub(1);
                step
            }
            Step::EndRing => {
                let place = counter.ring_end;
                counter.ring_end = (place + 1) % PLACES;
                Step::IntoRing { place }
            }
            Step::IntoRing { place } => {
                if std::mem::replace(&mut counter.ring[usize::from(place)], me.last + 1) != 0 {
                    return Err("a tile in the ring was overwritten");
                }
                Step::CountGivenBack
            }
            Step::CountGivenBack => {
                counter.taken.given_back += 1;
                match self.flaw {
                    Some(Flaw::NobodyComesForTheTile) => Step::Leave,
                    _ if counter.taken.count < self.tiles => Step::Leave,
                    _ => Step::ReadTaken,
                }
            }
            Step::Leave => {
                let (held, is_last) = (me.held, !joins && counter.left + 1 == workers);
                if counter.taken.epoch != epoch && held != 0 {
                    return Err("tiles were counted into another launch");
                }
                counter.finished += held.count_ones() as u8;
                counter.left += u8::from(!joins);
                if joins {
                    done[usize::from(epoch)] |= std::mem::take(&mut me.held);
                }
                match () {
                    () if is_last => Step::AwaitFinished,
                    () if me.joined => Step::LeaveJoined,
                    () => Step::Ended,
                }
            }
            Step::LeaveJoined => {
                counter.joined -= 1;
                Step::Ended
            }
            Step::AwaitFinished if counter.finished < self.tiles => step,
            Step::AwaitFinished if self.flaw == Some(Flaw::ForgetsWhoIsIn) => Step::ReadEpoch,
            Step::AwaitFinished => Step::AwaitJoined,
            Step::AwaitJoined if counter.joined != 0 => step,
            Step::AwaitJoined => Step::ReadEpoch,
            Step::ReadEpoch => Step::ResetFinished { epoch: counter.taken.epoch },
            Step::ResetFinished { epoch } => {
                counter.finished = 0;
                Step::ResetDeparted { epoch }
            }
            Step::ResetDeparted { epoch } => {
                (counter.sent_away, counter.left) = (0, 0);
                Step::ResetTaken { epoch }
            }
            Step::ResetTaken { epoch } => {
                counter.taken = Taken { epoch: epoch + 1, given_back: 0, count: 0 };
                Step::Ended
            }
            Step::Ended => step,
        };
        if me.step == Step::Leave {
            (me.last, me.sent_away) = (0, false);
        }
        if me.step == Step::Ended {
            done[usize::from(epoch)] |= me.held;
            *me = Worker { step: Step::Ended, held: 0, last: 0, sent_away: false, joined: false, ..*me };
        }
        if let Some(tile) = tile {
            let holds = |worker: &Worker| worker.held >> tile & 1 == 1 && self.launches[usize::from(worker.launch)].epoch == epoch;
            if done[usize::from(epoch)] >> tile & 1 == 1 || all.iter().any(holds) {
                return Err("a tile was taken twice");
            }
            let me = &mut all[who];
            me.held |= 1 << tile;
            (me.step, me.last) = match () {
                () if me.sent_away => (Step::Leave, 0),
                () if self.gives_back => (Step::Work, tile),
                () => (Step::Take, 0),
            };
            me.sent_away = false;
        }
        if matches!(step, Step::ResetTaken { .. }) && after.done[usize::from(epoch)] != (1 << self.tiles) - 1 {
            return Err("a launch was complete before all its tiles were done");
        }
        if after != *state {
            next.push(after);
        }
        Ok(())
    }

    /// The steps of a worker that reads the grant to `take` a tile or, if one is under way that may be given back, to ask whether it should be.
    fn read_grant(&self, state: &State, who: usize, next: &mut Vec<State>) {
        let Worker { step, launch, joined, .. } = state.workers[who];
        let joins = self.launches[usize::from(launch)].joins;
        for &held in self.grant {
            let mut after = *state;
            let me = &mut after.workers[who];
            if step == Step::Work && !held {
                me.step = Step::LookForFresh;
                next.push(after);
            }
            let me = &mut after.workers[who];
            me.last = 0;
            me.step = match (held, joins) {
                (true, true) if !joined && self.flaw == Some(Flaw::LooksBeforeItIsIn) => Step::Look,
                (true, true) if !joined => Step::Enter,
                (true, _) => Step::TakeFresh,
                (false, false) => Step::SendAway { asked: false },
                (false, true) => Step::Leave,
            };
            next.push(after);
        }
    }

    /// What a worker does that is sent away from a tile: it gives that one back, or does it to the end. Either way `take` will give it no other.
    fn wanted_back(&self, mut after: State, who: usize, next: &mut Vec<State>) -> Result<(), &'static str> {
        let me = &mut after.workers[who];
        let (last, held) = (me.last, me.held);
        (me.step, me.last) = (Step::Leave, 0);
        next.push(after);
        let me = &mut after.workers[who];
        *me = Worker { step: Step::EndRing, last, held: held & !(1 << last), sent_away: true, ..*me };
        next.push(after);
        Ok(())
    }

    /// The number of states, all of which are right, and lead to the last.
    fn explore(&self) -> Result<usize, Wrong> {
        let first = self.first();
        let mut found = HashMap::<State, usize, BuildHasherDefault<Quick>>::default();
        found.insert(first, 0);
        let mut waiting = VecDeque::from([first]);
        // Of each state but the first, where it was first come from, and who took that step.
        let mut origins: Vec<(usize, Worker)> = Vec::new();
        // The states that each state leads to: those of one behind those of the one before.
        let (mut edges, mut ends) = (Vec::<u32>::new(), Vec::<usize>::new());
        let mut reaches_end = Vec::new();
        let mut next = Vec::new();
        while let Some(state) = waiting.pop_front() {
            let from = ends.len();
            for (who, &worker) in state.workers.iter().enumerate() {
                if who > 0 && worker == state.workers[who - 1] {
                    continue;
                }
                if let Err(what) = self.step(&state, who, &mut next) {
                    return Err(Wrong::new(what, &origins, from, Some(worker)));
                }
                for mut after in next.drain(..) {
                    after.workers.sort_unstable();
                    let new = found.len();
                    let to = *found.entry(after).or_insert_with(|| {
                        origins.push((from, worker));
                        waiting.push_back(after);
                        new
                    });
                    edges.push(to as u32);
                }
            }
            ends.push(edges.len());
            let is_end = state.workers.iter().all(|worker| worker.step == Step::Ended);
            if is_end && !self.is_ready_for_the_next(&state.counter) {
                return Err(Wrong::new("the counter was not reset", &origins, from, None));
            }
            reaches_end.push(is_end);
        }
        for changed in std::iter::repeat_with(|| backwards(&mut reaches_end, &edges, &ends)) {
            if !changed {
                break;
            }
        }
        match reaches_end.iter().position(|&reaches| !reaches) {
            Some(stuck) => Err(Wrong::new("the launches never end", &origins, stuck, None)),
            None => Ok(found.len()),
        }
    }

    fn is_ready_for_the_next(&self, counter: &Counter) -> bool {
        let epoch = self.launches.iter().filter(|launch| !launch.joins).count() as u8;
        let Counter { ring_begin, ring_end, .. } = *counter;
        ring_begin == ring_end && *counter == Counter { taken: Taken { epoch, ..Taken::default() }, ring_begin, ring_end, ..Counter::default() }
    }
}

/// Marks who leads to one that is marked; whether there were any.
fn backwards(marks: &mut [bool], edges: &[u32], ends: &[usize]) -> bool {
    let mut changed = false;
    for state in (0..marks.len()).rev() {
        let begin = if state == 0 { 0 } else { ends[state - 1] };
        if !marks[state] && edges[begin..ends[state]].iter().any(|&to| marks[to as usize]) {
            (marks[state], changed) = (true, true);
        }
    }
    changed
}

impl Wrong {
    fn new(what: &'static str, origins: &[(usize, Worker)], mut state: usize, last: Option<Worker>) -> Self {
        let mut way: Vec<Worker> = last.into_iter().collect();
        while state > 0 {
            let (from, worker) = origins[state - 1];
            way.push(worker);
            state = from;
        }
        way.reverse();
        Self { what, way }
    }
}

/// A hash of few instructions: the standard library's would be most of the tests' time.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u8(byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[test]
fn sizes() {
    let base = Model { launches: &[], tiles: 2, grant: CHANGING, gives_back: false, flaw: None };
    let all: &[(&str, &'static [Launch])] = &[
        ("o2", &[owner(0, 2)]),
        ("o3", &[owner(0, 3)]),
        ("o4", &[owner(0, 4)]),
        ("o2j1", &[owner(0, 2), joiner(0, 1)]),
        ("o2j2", &[owner(0, 2), joiner(0, 2)]),
        ("o3j1", &[owner(0, 3), joiner(0, 1)]),
        ("o2 j1 j1", &[owner(0, 2), joiner(0, 1), joiner(0, 1)]),
        ("o3j2", &[owner(0, 3), joiner(0, 2)]),
        ("o2 o2", &[owner(0, 2), owner(1, 2)]),
        ("o1j1 o1", &[owner(0, 1), joiner(0, 1), owner(1, 1)]),
        ("o2j1 o1", &[owner(0, 2), joiner(0, 1), owner(1, 1)]),
        ("o2j1 o2", &[owner(0, 2), joiner(0, 1), owner(1, 2)]),
        ("o2j2 o1", &[owner(0, 2), joiner(0, 2), owner(1, 1)]),
        ("o1j1 o1j1", &[owner(0, 1), joiner(0, 1), owner(1, 1), joiner(1, 1)]),
        ("o2j1 o1j1", &[owner(0, 2), joiner(0, 1), owner(1, 1), joiner(1, 1)]),
    ];
    for gives_back in [false, true] {
        for tiles in [2, 3, 4] {
            for (name, launches) in all {
                let t = std::time::Instant::now();
                let r = Model { launches, tiles, gives_back, ..base }.explore();
                println!("{name} tiles {tiles} gb {gives_back}: {:?} {:?}", r, t.elapsed());
            }
        }
    }
}
