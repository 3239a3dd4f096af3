//! Which partition each kernel of a tenant runs in, among the few that the tenant may use.
//!
//! | room | who runs there | what a launch of kernel `k` costs |
//! |---|---|---|
//! | the part it owns | everybody | `L_k(n) * (1 + c(n))` |
//! | the fewest TPCs that keep its objective, where it owns more | kernels of a latency tenant that are quicker there | `L_k(n)` |
//! | a smaller rung inside it, at the GPU's edge if it has one | kernels that lose nothing by it, or that leave SMs to others | `1.02 * L_k(n) * (1 + c(n))` |
//! | its window | throughput tenants, where sets overlap | `L_k(n) * (1 + c(n))` |
//! | its grant, borrowed TPCs included | kernels of throughput tenants that poll it | 2 us, and half `L_k` there, half `L_k` on its window and 0.5 us, times `1 + c(n)` of its window |
//!
//! `c(n) = rivals * n / (2 S)` is what other tenants that overlap lose for `n` SMs that a kernel holds of a window of `S`: `rivals` is the sum, over those others, of
//! the part of their window that this one takes up, and 0 where sets are disjoint. It is how a kernel comes to run below its knee: half of its latency's gain must be worth more than the others' loss. The
//! 2% is the profiles' own tolerance. What a latency tenant needs was sized to keep its objective, and pays none. A grant is sized for all its SMs, since one captured graph serves both times: lent, and taken back,
//! when blocks on SMs that are not held leave at once, which costs a launch 0.5 us. Lent half of the time is an assumption. A launch
//! that is too short to poll by itself is made to where its entry point can (docs/decisions/0011): between two launches on the grant that costs less than two
//! hops. One that cannot is sent home by its session, since SMs could not be taken back from it ([`Placement::borrows`](crate::launch::Placement)).
//!
//! Once the board's power limit binds, a launch of a throughput tenant also costs what its [energy](super::power) does, in the time that it takes from everybody: of rooms that are about as quick
//! it gets the one that takes the fewest joules. A room that is slower by more than those 2% gets nothing for what it saves: energies are measured less exactly than times.

use crate::device::Priority;
use crate::partition::TpcSet;
use crate::policy::family::{end_of, is_edge};
use crate::policy::{DEFAULT_TOLERANCE, DraftPlacement, TenantDraft, WALLED};

use super::contention::Load;
use super::power::{At, Energies};
use super::request::Request;
use super::scene::Scene;
use super::{HOP_US, switches};

/// What polling costs a launch that is short on all of its grant: its first tile comes from a counter.
const POLLING_US: f64 = 2.0;
/// What a launch sized for the grant loses while lent TPCs are taken back.
const LEAVE_US: f64 = 0.5;

/// What one tenant may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rooms {
    pub(super) owned: TpcSet,
    /// `owned`, or a wider set that other tenants use too.
    pub(super) window: TpcSet,
    /// TPCs of latency tenants, while those do not want them.
    pub(super) lent: TpcSet,
    /// The least TPCs that do for the whole request, if `owned` is more.
    pub(super) need: u16,
    /// Tenants that borrow, this one included.
    pub(super) sharers: u16,
    /// Other tenants' windows that this one's takes up, each as far as it does.
    pub(super) rivals: f64,
    pub(super) priority: Priority,
    /// What a change of partition costs, microseconds.
    pub(super) hop_us: f64,
    /// What a microjoule costs, microseconds.
    pub(super) us_per_uj: f64,
}

/// A tenant's kernels in their rooms.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) draft: TenantDraft,
    /// A request, undisturbed while nothing is lent; none if nothing of it was profiled.
    pub(super) load: Option<Load>,
}

/// Chooses each kernel's room.
pub(super) fn place(scene: &Scene<'_>, tenant: usize, rooms: &Rooms) -> Placed {
    let over = |tpcs| DraftPlacement { priority: rooms.priority, ..DraftPlacement::over(scene.topology, tpcs) };
    let mut draft = TenantDraft {
        owned: rooms.owned | rooms.window,
        grant: rooms.owned | rooms.window | rooms.lent,
        default: over(rooms.owned),
        kernels: Default::default(),
        walls: WALLED,
    };
    let Some(request) = &scene.tenants[tenant].request else { return Placed { draft, load: None } };
    let choices = choices(scene, tenant, rooms);
    let joules = request.energies.as_ref().filter(|_| rooms.us_per_uj > 0.0).map(|energies| Joules::new(scene, energies, rooms, &choices));
    let mut costs = Vec::with_capacity(request.kernels.len() * choices.len());
    for (kernel, demand) in request.kernels.iter().enumerate() {
        let launches = f64::from(demand.launches);
        costs.extend(choices.iter().map(|choice| launches * choice.cost(scene, request, kernel, rooms)));
        if let Some(joules) = &joules {
            let row = costs.len() - choices.len();
            joules.add(scene, request, kernel, rooms, &choices, &mut costs[row..]);
        }
    }
    let launches: Vec<u32> = request.kernels.iter().map(|kernel| kernel.launches).collect();
    let assigned = switches::assign(&launches, &costs, rooms.hop_us);
    let mut us = rooms.hop_us * switches::hops(&launches, &assigned);
    let mut uj = 0.0;
    let places: Option<Vec<At>> = request
        .energies
        .as_ref()
        .map(|energies| choices.iter().map(|choice| energies.place(scene.sms_count(choice.tpcs_kept(rooms)))).collect());
    for (kernel, (&at, demand)) in assigned.iter().zip(&request.kernels).enumerate() {
        us += f64::from(demand.launches) * request.kernel_us(&scene.sizes, kernel, choices[at].tpcs_kept(rooms));
        if let Some((energies, places)) = request.energies.as_ref().zip(places.as_ref()) {
            uj += f64::from(demand.launches) * energies.kernel(kernel, places[at]);
        }
        if at > 0 {
            draft.kernels.insert(demand.kernel, over(choices[at].tpcs(scene, rooms)));
        }
    }
    Placed { draft, load: Some(Load { us, uj, ..*request.load(rooms.owned.len()) }) }
}

/// What energy costs in each of the choices.
struct Joules<'a> {
    energies: &'a Energies,
    us_per_uj: f64,
    /// Where each choice's sizes lie between the measured counts: what it keeps, and what it has while the most is lent.
    places: Vec<[At; 2]>,
}

impl<'a> Joules<'a> {
    fn new(scene: &Scene<'_>, energies: &'a Energies, rooms: &Rooms, choices: &[Choice]) -> Self {
        let place = |tpcs: u16| energies.place(scene.sms_count(tpcs));
        let places = choices.iter().map(|choice| [choice.tpcs_kept(rooms), choice.tpcs_lent(rooms)].map(place)).collect();
        Self { energies, us_per_uj: rooms.us_per_uj, places }
    }

    /// Adds to the costs of a kernel's launches, by choice, what their energy costs.
    fn add(&self, scene: &Scene<'_>, request: &Request<'_>, kernel: usize, rooms: &Rooms, choices: &[Choice], costs: &mut [f64]) {
        let launches = f64::from(request.kernels[kernel].launches);
        let uj = |[kept, lent]: [At; 2]| f64::midpoint(self.energies.kernel(kernel, kept), self.energies.kernel(kernel, lent));
        let us = |choice: Choice| request.kernel_us(&scene.sizes, kernel, choice.tpcs_kept(rooms));
        let (own_uj, own_us) = (uj(self.places[0]), us(choices[0]));
        for ((cost, place), &choice) in costs.iter_mut().zip(&self.places).zip(choices) {
            let saves = us(choice) <= own_us * (1.0 + DEFAULT_TOLERANCE);
            let uj = if saves { uj(*place) } else { uj(*place).max(own_uj) };
            *cost += launches * uj * self.us_per_uj;
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    /// So many of the TPCs that the tenant owns, at one end.
    Own(u16),
    Window,
    Grant,
}

/// The part that the tenant owns comes first: of equal choices it counts. Of a part that lies within the GPU and is nobody else's a throughput tenant has the whole: what
/// smaller sets would save it is little beside what making them costs everybody while others work.
fn choices(scene: &Scene<'_>, tenant: usize, rooms: &Rooms) -> Vec<Choice> {
    let own = rooms.owned.len();
    let mut choices = vec![Choice::Own(own)];
    if rooms.window != rooms.owned {
        choices.push(Choice::Window);
    }
    if !(rooms.window | rooms.owned).includes(rooms.lent) {
        choices.push(Choice::Grant);
    }
    if rooms.need < own {
        choices.push(Choice::Own(rooms.need));
    }
    let is_shared = rooms.window != rooms.owned;
    if scene.tenants[tenant].is_latency() || is_shared || is_edge(scene.topology, rooms.owned) {
        choices.extend(scene.sizes.rungs_below(scene.topology, own).filter(|&rung| rung != rooms.need).map(Choice::Own));
    }
    choices
}

impl Choice {
    fn tpcs(self, scene: &Scene<'_>, rooms: &Rooms) -> TpcSet {
        match self {
            Self::Own(tpcs) if tpcs == rooms.owned.len() => rooms.owned,
            Self::Own(tpcs) => end_of(scene.topology, rooms.owned, tpcs),
            Self::Window => rooms.window,
            Self::Grant => rooms.owned | rooms.window | rooms.lent,
        }
    }

    /// How many TPCs are left while nothing is lent.
    fn tpcs_kept(self, rooms: &Rooms) -> u16 {
        match self {
            Self::Own(tpcs) => tpcs,
            Self::Window | Self::Grant => rooms.window.len(),
        }
    }

    /// How many TPCs there are while what is lent is shared equally.
    fn tpcs_lent(self, rooms: &Rooms) -> u16 {
        let lent = if matches!(self, Self::Grant) { (rooms.lent - rooms.window).len() / rooms.sharers } else { 0 };
        self.tpcs_kept(rooms) + lent
    }

    /// One launch, in microseconds, what it costs others included, but for its energy.
    fn cost(self, scene: &Scene<'_>, request: &Request<'_>, kernel: usize, rooms: &Rooms) -> f64 {
        let us = |tpcs: u16| request.kernel_us(&scene.sizes, kernel, tpcs);
        let held = |tpcs: u16| 0.5 * rooms.rivals * f64::from(tpcs) / f64::from(rooms.window.len());
        match self {
            Self::Own(tpcs) if tpcs == rooms.owned.len() || tpcs == rooms.need => us(tpcs) * (1.0 + held(tpcs)),
            Self::Own(tpcs) => us(tpcs) * (1.0 + held(tpcs)) * (1.0 + DEFAULT_TOLERANCE),
            Self::Window => us(rooms.window.len()) * (1.0 + held(rooms.window.len())),
            Self::Grant => {
                let kept = rooms.window.len();
                let (taken_back, lent) = (us(kept) + LEAVE_US, us(self.tpcs_lent(rooms)));
                (POLLING_US + f64::midpoint(taken_back, lent)) * (1.0 + held(kept))
            }
        }
    }
}

impl Rooms {
    /// The rooms of a tenant that shares with nobody.
    pub(super) fn alone(owned: TpcSet, priority: Priority, no_switch_budget: bool) -> Self {
        let hop_us = if no_switch_budget { 0.0 } else { HOP_US };
        Self { owned, window: owned, lent: TpcSet::EMPTY, need: owned.len(), sharers: 1, rivals: 0.0, priority, hop_us, us_per_uj: 0.0 }
    }
}
