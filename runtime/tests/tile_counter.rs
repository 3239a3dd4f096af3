//! A model checker for the counter from which thread blocks take tiles: `TileQueue` in kernels/elastic.cuh, whose table tells the protocol.
//!
//! A GPU test sees the interleavings that happen to occur; this one goes through all of them, for launches small enough. Each worker of an owner's launch, and
//! of joiners' launches, is a machine that makes one access to device memory in a step, in the order in which elastic.cuh makes them; a state is what the
//! counter's words hold and where each worker stands. From the first state, every worker's next step is tried, until no state is new. Every step is
//! checked: no tile is taken twice or in another launch's time, and no launch is complete before its tiles are. And from every state all ways must lead to the
//! one where everybody has ended and the counter is ready for the next launch: then nothing hangs, so long as every worker gets its turn.
//!
//! Where the model is simpler than the GPU, it lets happen as much or more, but for the first of these:
//! - Memory is sequentially consistent. Whether the fences of elastic.cuh suffice for that is not shown here; [`Flaw::LooksBeforeItIsIn`] is what one is for.
//! - The grant answers each time as it likes: any number of changes at any time. To be told that nobody wants one's tile is not to have asked.
//! - A tile is done as late as may be: an owner's with the last step of its worker, a joiner's with the one that counts it as finished.
//! - A joiner may begin at any time, even before everything that precedes its owner has ended, which the host never lets happen.
//! - Workers of one launch that stand alike are not told apart.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Of all launches together, and the owners' launches: what a state has room for.
const MOST_WORKERS: usize = 5;
const MOST_EPOCHS: usize = 2;
/// `GIVEN_BACK_TILES`: more than there can be at the same time.
const PLACES: usize = 4;
/// `GIVEN_BACK_ENOUGH`.
const ENOUGH: u8 = 2;

/// The word that counts a launch's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
struct Taken {
    epoch: u8,
    given_back: u8,
    count: u8,
}

/// A `TileProgress`. An atomic changes `finished`, `sent_away` and `left` together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Counter {
    taken: Taken,
    finished: u8,
    sent_away: u8,
    left: u8,
    joined: u8,
    ring_begin: u8,
    ring_end: u8,
    ring: [u8; PLACES],
}

/// The access that a worker makes next, by the function of elastic.cuh that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// `take`: reads the grant. A worker that has not begun stands here, too.
    Take,
    /// The grant is read by `take`, or by `should_give_back`, since a tile is under way.
    Work,
    /// `should_give_back`: reads `taken`.
    LookForFresh,
    /// `is_last_to_stay`: counts itself as sent away, and takes that back. `at_work`: for `should_give_back`, not for `take`.
    SendAway {
        at_work: bool,
    },
    Stay {
        at_work: bool,
    },
    /// `is_in`: counts itself in, reads `taken`, and counts itself out again if there is nothing for it.
    Enter,
    LookForAny,
    Withdraw,
    /// `take_fresh`.
    TakeFresh,
    /// `take_given_back`: reads `taken`, then compares and swaps.
    LookForGivenBack,
    TakeGivenBack {
        seen: Taken,
    },
    /// `out_of_ring`.
    FindPlaceOut,
    OutOfRing {
        place: u8,
    },
    /// `give_back`.
    FindPlaceIn,
    IntoRing {
        place: u8,
    },
    GiveBack,
    /// `leave`; of a joiner's worker that is in; of the owner's last.
    Leave,
    LeaveJoined,
    AwaitFinished,
    AwaitJoined,
    ReadEpoch,
    ResetFinished {
        epoch: u8,
    },
    ResetDeparted {
        epoch: u8,
    },
    ResetTaken {
        epoch: u8,
    },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Worker {
    /// Index into [`Model::launches`].
    launch: u8,
    step: Step,
    /// Of an owner that has not begun, where first tiles go by number: 1 + its own; else 0.
    own: u8,
    /// A bit for each tile that it took and has not given back; their number is `taken_`.
    held: u8,
    /// The tile that was taken last, while it may be given back.
    last: u8,
    sent_away: bool,
    joined: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    counter: Counter,
    /// A bit for each tile of each epoch that is done.
    done: [u8; MOST_EPOCHS],
    workers: [Worker; MOST_WORKERS],
}

#[derive(Debug, Clone, Copy)]
struct Launch {
    joins: bool,
    epoch: u8,
    workers: u8,
    /// Of an owner: whether a worker's first tile is that of its own number.
    numbered: bool,
}

const fn owner(epoch: u8, workers: u8) -> Launch {
    Launch { joins: false, epoch, workers, numbered: false }
}

const fn numbered(epoch: u8, workers: u8) -> Launch {
    Launch { numbered: true, ..owner(epoch, workers) }
}

const fn joiner(epoch: u8, workers: u8) -> Launch {
    Launch { joins: true, epoch, workers, numbered: false }
}

/// A precaution left out, to see that it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Who ends the launch does not wait for joiners that are in.
    EndsOverJoiners,
    /// A joiner reads `taken` before it counts itself in, as the hardware might without the fence between the two.
    LooksBeforeItIsIn,
    /// The owner's last worker goes like all others when its SM is not held.
    NobodyStays,
    /// Who gives a tile back leaves, though the last fresh one may have gone meanwhile.
    NobodyComesForTheTile,
}

/// What is explored.
struct Model<'a> {
    launches: &'a [Launch],
    /// Of each epoch.
    tiles: u8,
    gives_back: bool,
    flaw: Option<Flaw>,
}

/// What went wrong, and the shortest way there: each worker as it stood before its step.
#[derive(Debug)]
struct Wrong {
    what: &'static str,
    way: Vec<Worker>,
}

impl Model<'_> {
    fn first(&self) -> State {
        let own = |launch: &Launch, worker: u8| if launch.numbered { worker + 1 } else { 0 };
        let mut launches = (0..)
            .zip(self.launches)
            .flat_map(|(index, launch)| (0..launch.workers).map(move |worker| (index, Step::Take, own(launch, worker))));
        let mut workers = [(); MOST_WORKERS].map(|()| {
            let (launch, step, own) = launches.next().unwrap_or((u8::MAX, Step::Ended, 0));
            Worker { launch, step, own, held: 0, last: 0, sent_away: false, joined: false }
        });
        assert!(launches.next().is_none(), "a state has room for {MOST_WORKERS} workers");
        workers.sort_unstable();
        State { counter: Counter::default(), done: [0; MOST_EPOCHS], workers }
    }

    /// Tiles of an epoch that are not taken by the counter, and come before those that are.
    fn taken_by_number(&self, epoch: u8) -> u8 {
        self.launches.iter().filter(|launch| launch.numbered && launch.epoch == epoch).map(|launch| launch.workers).sum()
    }

    /// Whether a launch may run: of owners, which are on one stream, one at a time.
    fn has_begun(&self, state: &State, launch: Launch) -> bool {
        let precedes =
            |worker: &Worker| self.launches.get(usize::from(worker.launch)).is_some_and(|of| !of.joins && of.epoch < launch.epoch);
        launch.joins || state.workers.iter().all(|worker| worker.step == Step::Ended || !precedes(worker))
    }

    /// Puts the states to which the next access of worker `who` may lead into `next`: none where it waits, and reads what it has read before.
    fn step(&self, state: &State, who: usize, next: &mut Vec<State>) -> Result<(), &'static str> {
        let step = state.workers[who].step;
        let Some(&launch) = self.launches.get(usize::from(state.workers[who].launch)) else { return Ok(()) };
        let Launch { joins, epoch, .. } = launch;
        let mut after = *state;
        let State { counter, done, workers } = &mut after;
        let (done, me) = (&mut done[usize::from(epoch)], &mut workers[who]);
        let mut tile = None;
        let by_number = self.taken_by_number(epoch);
        let fresh = self.tiles - by_number;
        if matches!(step, Step::TakeFresh | Step::TakeGivenBack { .. } | Step::GiveBack | Step::ResetTaken { .. })
            && counter.taken.epoch != epoch
        {
            return Err("a worker changed the tiles of another launch");
        }
        me.step = match step {
            Step::Take | Step::Work => {
                if self.has_begun(state, launch) {
                    self.read_grant(state, who, next);
                }
                return Ok(());
            }
            Step::LookForFresh if counter.taken.count >= fresh || counter.taken.given_back >= ENOUGH => Step::Take,
            Step::LookForFresh if joins => {
                next.extend(break_off(after, who));
                return Ok(());
            }
            Step::LookForFresh => Step::SendAway { at_work: true },
            Step::SendAway { at_work } => {
                counter.sent_away += 1;
                if counter.sent_away >= launch.workers && self.flaw != Some(Flaw::NobodyStays) {
                    Step::Stay { at_work }
                } else if at_work {
                    next.extend(break_off(after, who));
                    return Ok(());
                } else if me.own != 0 {
                    (me.last, me.sent_away) = (std::mem::take(&mut me.own) - 1, true);
                    Step::FindPlaceIn
                } else {
                    Step::Leave
                }
            }
            Step::Stay { at_work } => {
                counter.sent_away -= 1;
                tile = std::mem::take(&mut me.own).checked_sub(1);
                if at_work { Step::Take } else { Step::TakeFresh }
            }
            Step::Enter => {
                counter.joined += 1;
                me.joined = self.flaw == Some(Flaw::LooksBeforeItIsIn);
                if me.joined { Step::TakeFresh } else { Step::LookForAny }
            }
            Step::LookForAny => {
                let Taken { epoch: now, given_back, count } = counter.taken;
                let has_any = now == epoch && (count < fresh || given_back > 0);
                let is_counted = self.flaw != Some(Flaw::LooksBeforeItIsIn);
                me.joined = has_any && is_counted;
                match (has_any, is_counted) {
                    (true, true) => Step::TakeFresh,
                    (true, false) => Step::Enter,
                    (false, true) => Step::Withdraw,
                    (false, false) => Step::Leave,
                }
            }
            Step::Withdraw => {
                counter.joined -= 1;
                Step::Leave
            }
            Step::TakeFresh => {
                tile = Some(counter.taken.count).filter(|&count| count < fresh).map(|count| by_number + count);
                counter.taken.count += 1;
                Step::LookForGivenBack
            }
            Step::LookForGivenBack | Step::TakeGivenBack { .. } if counter.taken.given_back == 0 => Step::Leave,
            Step::TakeGivenBack { seen } if counter.taken == seen => {
                counter.taken.given_back -= 1;
                Step::FindPlaceOut
            }
            Step::LookForGivenBack | Step::TakeGivenBack { .. } => Step::TakeGivenBack { seen: counter.taken },
            Step::FindPlaceOut => Step::OutOfRing { place: next_place(&mut counter.ring_begin) },
            Step::OutOfRing { place } => {
                tile = std::mem::take(&mut counter.ring[usize::from(place)]).checked_sub(1);
                step
            }
            Step::FindPlaceIn => Step::IntoRing { place: next_place(&mut counter.ring_end) },
            Step::IntoRing { place } => {
                if std::mem::replace(&mut counter.ring[usize::from(place)], me.last + 1) != 0 {
                    return Err("a tile in the ring was overwritten");
                }
                Step::GiveBack
            }
            Step::GiveBack => {
                counter.taken.given_back += 1;
                let others_come = counter.taken.count < fresh || self.flaw == Some(Flaw::NobodyComesForTheTile);
                if others_come { Step::Leave } else { Step::LookForGivenBack }
            }
            Step::Leave => {
                if me.held != 0 && counter.taken.epoch != epoch {
                    return Err("tiles were counted into another launch");
                }
                counter.finished += me.held.count_ones() as u8;
                if joins {
                    *done |= std::mem::take(&mut me.held);
                    if me.joined { Step::LeaveJoined } else { Step::Ended }
                } else {
                    counter.left += 1;
                    if counter.left == launch.workers { Step::AwaitFinished } else { Step::Ended }
                }
            }
            Step::LeaveJoined => {
                counter.joined -= 1;
                Step::Ended
            }
            Step::AwaitFinished if counter.finished < self.tiles => step,
            Step::AwaitFinished if self.flaw == Some(Flaw::EndsOverJoiners) => Step::ReadEpoch,
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
                counter.taken = Taken { epoch: epoch + 1, ..Taken::default() };
                Step::Ended
            }
            Step::Ended => step,
        };
        if let Some(tile) = tile {
            let holds = |worker: &Worker| worker.held >> tile & 1 == 1 && self.launches[usize::from(worker.launch)].epoch == epoch;
            if *done >> tile & 1 == 1 || state.workers.iter().any(holds) {
                return Err("a tile was taken twice");
            }
            self.begin(me, tile);
            if me.sent_away {
                me.step = Step::Leave; // of its own that it took back
            }
        }
        if me.step == Step::Leave {
            (me.last, me.sent_away) = (0, false);
        }
        if me.step == Step::Ended {
            *done |= std::mem::take(&mut me.held);
            me.joined = false;
            if matches!(step, Step::ResetTaken { .. }) && *done != (1 << self.tiles) - 1 {
                return Err("a launch was complete before its tiles were done");
            }
        }
        if after != *state {
            next.push(after);
        }
        Ok(())
    }

    fn begin(&self, me: &mut Worker, tile: u8) {
        me.held |= 1 << tile;
        me.last = if self.gives_back { tile } else { 0 };
        me.step = if self.gives_back { Step::Work } else { Step::Take };
    }

    /// The steps of a worker that reads the grant, for either answer.
    fn read_grant(&self, state: &State, who: usize, next: &mut Vec<State>) {
        let Worker { step, launch, joined, .. } = state.workers[who];
        let joins = self.launches[usize::from(launch)].joins;
        let looks_first = self.flaw == Some(Flaw::LooksBeforeItIsIn);
        if step == Step::Work {
            next.push(with(state, who, |me| me.step = Step::LookForFresh));
        }
        let if_held = match (joins && !joined, looks_first) {
            (false, _) => Step::TakeFresh,
            (true, false) => Step::Enter,
            (true, true) => Step::LookForAny,
        };
        let if_not = if joins { Step::Leave } else { Step::SendAway { at_work: false } };
        let if_held = with(state, who, |me| match std::mem::take(&mut me.own).checked_sub(1) {
            // No access more.
            Some(own) => self.begin(me, own),
            None => (me.step, me.last) = (if_held, 0),
        });
        next.extend([if_held, with(state, who, |me| (me.step, me.last) = (if_not, 0))]);
    }

    /// How many states there are, all of them right.
    fn explore(&self) -> Result<usize, Wrong> {
        let first = self.first();
        let mut numbers = HashMap::<State, usize, BuildHasherDefault<Quick>>::default();
        numbers.insert(first, 0);
        let mut waiting = VecDeque::from([first]);
        // Of each state but the first, where it was first come from, and who took that step.
        let mut origins: Vec<(usize, Worker)> = Vec::new();
        // The states that each state leads to, one state's behind the other's, and where they end.
        let (mut edges, mut ends) = (Vec::<u32>::new(), vec![0]);
        // Whether all ways from a state lead to the last.
        let mut is_sure = Vec::new();
        let mut next = Vec::new();
        while let Some(state) = waiting.pop_front() {
            let from = is_sure.len();
            for (who, &worker) in state.workers.iter().enumerate().filter(|&(who, worker)| who == 0 || *worker != state.workers[who - 1]) {
                self.step(&state, who, &mut next).map_err(|what| Wrong::new(what, &origins, from, Some(worker)))?;
                for mut after in next.drain(..) {
                    after.workers.sort_unstable();
                    let new = numbers.len();
                    let to = *numbers.entry(after).or_insert_with(|| {
                        origins.push((from, worker));
                        waiting.push_back(after);
                        new
                    });
                    edges.push(to as u32);
                }
            }
            let is_last = state.workers.iter().all(|worker| worker.step == Step::Ended);
            if !is_last && ends.last() == Some(&edges.len()) {
                return Err(Wrong::new("everybody waits", &origins, from, None));
            }
            if is_last && !self.is_ready_for_the_next(&state.counter) {
                return Err(Wrong::new("the counter was not reset", &origins, from, None));
            }
            ends.push(edges.len());
            is_sure.push(is_last);
        }
        let mut grows = true;
        while std::mem::take(&mut grows) {
            for state in (0..is_sure.len()).rev() {
                if !is_sure[state] && edges[ends[state]..ends[state + 1]].iter().all(|&to| is_sure[to as usize]) {
                    (is_sure[state], grows) = (true, true);
                }
            }
        }
        match is_sure.iter().rposition(|&sure| !sure) {
            Some(state) => Err(Wrong::new("workers may go round for ever", &origins, state, None)),
            None => Ok(numbers.len()),
        }
    }

    fn is_ready_for_the_next(&self, counter: &Counter) -> bool {
        let epoch = self.launches.iter().filter(|launch| !launch.joins).count() as u8;
        let ring_begin = counter.ring_end;
        *counter == Counter { taken: Taken { epoch, ..Taken::default() }, ring_begin, ring_end: ring_begin, ..Counter::default() }
    }
}

fn with(state: &State, who: usize, change: impl FnOnce(&mut Worker)) -> State {
    let mut after = *state;
    change(&mut after.workers[who]);
    after
}

/// What a worker may do that is sent away from a tile: give it back, or finish it. Either way `take` will give it no fresh one.
fn break_off(state: State, who: usize) -> [State; 2] {
    let gives_back = |me: &mut Worker| (me.step, me.held, me.sent_away) = (Step::FindPlaceIn, me.held & !(1 << me.last), true);
    [with(&state, who, gives_back), with(&state, who, |me| (me.step, me.last) = (Step::Leave, 0))]
}

fn next_place(counted: &mut u8) -> u8 {
    let place = *counted;
    *counted = (place + 1) % PLACES as u8;
    place
}

impl Wrong {
    /// In the state of that number, or in a step that a worker takes from there.
    fn new(what: &'static str, origins: &[(usize, Worker)], mut state: usize, who: Option<Worker>) -> Self {
        let mut way: Vec<Worker> = who.into_iter().collect();
        while state > 0 {
            let (from, worker) = origins[state - 1];
            way.push(worker);
            state = from;
        }
        way.reverse();
        Self { what, way }
    }
}

/// A hash of few instructions: the standard library's would take most of the tests' time.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Goes through all interleavings of `launches`, which give tiles back or do not.
fn assert_right(launches: &[Launch], tiles: u8) {
    for gives_back in [false, true] {
        match (Model { launches, tiles, gives_back, flaw: None }).explore() {
            Ok(states) => println!("{launches:?}, {tiles} tiles, gives back: {gives_back}: {states} states"),
            Err(Wrong { what, way }) => {
                panic!("{what}: {launches:?}, {tiles} tiles, gives back: {gives_back}, after these steps: {way:#?}")
            }
        }
    }
}

#[test]
fn owners_do_every_tile_once_and_end_whatever_the_grant() {
    assert_right(&[owner(0, 1)], 2);
    assert_right(&[owner(0, 2), owner(1, 2)], 4);
    assert_right(&[owner(0, 3)], 4);
    assert_right(&[owner(0, 4)], 3);
    assert_right(&[owner(0, 5)], 2);
}

#[test]
fn first_tiles_that_go_by_number_are_done_once_whatever_the_grant() {
    assert_right(&[numbered(0, 1)], 2);
    assert_right(&[numbered(0, 2), numbered(1, 2)], 4);
    assert_right(&[numbered(0, 3)], 4);
    assert_right(&[numbered(0, 3)], 3);
    assert_right(&[numbered(0, 2), joiner(0, 1)], 4);
    assert_right(&[numbered(0, 2), joiner(0, 1), joiner(0, 1)], 3);
    assert_right(&[numbered(0, 2), joiner(0, 1), owner(1, 2)], 3);
    assert_right(&[numbered(0, 1), joiner(0, 1), numbered(1, 2), joiner(1, 1)], 3);
}

#[test]
fn owners_and_joiners_do_every_tile_once_and_end_whatever_the_grant() {
    assert_right(&[owner(0, 2), joiner(0, 1)], 4);
    assert_right(&[owner(0, 3), joiner(0, 1)], 3);
    assert_right(&[owner(0, 1), joiner(0, 2)], 3);
    assert_right(&[owner(0, 2), joiner(0, 1), joiner(0, 1)], 2);
}

#[test]
fn a_joiner_that_comes_late_leaves_the_next_launch_alone() {
    assert_right(&[owner(0, 1), joiner(0, 2), owner(1, 2)], 2);
    assert_right(&[owner(0, 2), joiner(0, 1), owner(1, 2)], 3);
    assert_right(&[owner(0, 2), joiner(0, 1), owner(1, 1), joiner(1, 1)], 3);
}

#[test]
fn a_protocol_that_lacks_one_of_its_precautions_is_found_wrong() {
    let launches = [owner(0, 2), joiner(0, 1), owner(1, 1)];
    let found =
        |flaw| Model { launches: &launches, tiles: 2, gives_back: true, flaw: Some(flaw) }.explore().expect_err("it is flawed").what;
    assert_eq!(found(Flaw::EndsOverJoiners), "a worker changed the tiles of another launch");
    assert_eq!(found(Flaw::LooksBeforeItIsIn), "a worker changed the tiles of another launch");
    assert_eq!(found(Flaw::NobodyStays), "everybody waits");
    assert_eq!(found(Flaw::NobodyComesForTheTile), "everybody waits");
    let found = |flaw| {
        Model { launches: &[numbered(0, 2)], tiles: 3, gives_back: false, flaw: Some(flaw) }.explore().expect_err("it is flawed").what
    };
    assert_eq!(found(Flaw::NobodyStays), "everybody waits");
    assert_eq!(found(Flaw::NobodyComesForTheTile), "everybody waits");
}
