//! How tenants share the GPU, as `--policy` names it: a policy of the runtime, or a baseline without its help.
//!
//! Every MPS baseline is measured with two forms of the kernels: as they are, with persistent grids, and with one block for each tile (`:tiles` at the
//! end of the name), between whose blocks the hardware can let others in. Which suits a baseline better is for the figures to say.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smidgen_runtime::device::{Priority, Topology};
use smidgen_runtime::launch::Grids;
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{self, Ablations, DefaultSharing, Draft, Policy, TenantDemand};
use smidgen_runtime::tenant::Class;

/// What a name ends with where kernels have a block for each tile.
const TILES: &str = ":tiles";

/// How the tenants share the GPU in one phase of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Sharing {
    /// Each tenant in a process of its own, no MPS: the driver gives each process the GPU in turn.
    TimeSlice,
    /// Each tenant in a process of its own under an MPS daemon.
    Mps {
        /// What the daemon is told of the tenants.
        limits: MpsLimits,
        /// Which form the kernels have.
        grids: Grids,
    },
    /// All tenants in one process, placed by a policy of the runtime.
    Policy(String),
}

/// What MPS is told of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MpsLimits {
    /// Nothing.
    Default,
    /// Which of them come first: latency tenants.
    Priority,
    /// Which part of the SMs each may use, percent; equal parts where none are given.
    Percent(Option<Vec<u8>>),
}

impl Sharing {
    /// Every name that `--policy` takes, without those that `:tiles` or shares make of them.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ["time-slice", "mps-default", "mps-priority", "mps-percent"].into_iter().chain(policy::NAMES)
    }

    /// Whether each tenant has a process of its own.
    pub fn is_baseline(&self) -> bool {
        !matches!(self, Self::Policy(_))
    }

    /// Whether it needs an MPS daemon.
    pub fn needs_mps(&self) -> bool {
        matches!(self, Self::Mps { .. })
    }

    /// Which form the tenants' kernels have.
    pub fn grids(&self) -> Grids {
        match self {
            Self::Mps { grids, .. } => *grids,
            Self::Policy(_) if self.ablations().no_elasticity => Grids::Fixed,
            Self::TimeSlice | Self::Policy(_) => Grids::Persistent,
        }
    }

    /// Whether requests are launched kernel by kernel instead of being replayed.
    pub fn is_eager(&self) -> bool {
        self.ablations().no_graphs
    }

    fn ablations(&self) -> Ablations {
        match self {
            Self::Policy(name) => policy::ablations(name).unwrap_or_default(),
            Self::TimeSlice | Self::Mps { .. } => Ablations::default(),
        }
    }

    /// The same ways of sharing, every MPS baseline followed by itself with the other form of the kernels unless that is asked for anyway.
    pub fn with_both_forms(asked: Vec<Self>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for sharing in &asked {
            all.push(sharing.clone());
            if let Self::Mps { limits, grids: Grids::Persistent } = sharing {
                let tiles = Self::Mps { limits: limits.clone(), grids: Grids::TilePerBlock };
                if !asked.contains(&tiles) && !all.contains(&tiles) {
                    all.push(tiles);
                }
            }
        }
        all
    }

    /// Refuses shares that are not one for each tenant.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn check(&self, tenants: usize) -> Result<(), SharesError> {
        match self {
            Self::Mps { limits: MpsLimits::Percent(Some(shares)), .. } if shares.len() != tenants => {
                Err(SharesError { name: self.to_string(), shares: shares.len(), tenants })
            }
            _ => Ok(()),
        }
    }

    /// The policy that plans for a phase of it. `confines` says whether the plan must do what a daemon does on a GPU: keep a tenant to its percentage.
    ///
    /// # Errors
    /// [`policy::UnknownPolicy`].
    pub(super) fn policy(&self, confines: bool) -> Result<Box<dyn Policy>, policy::UnknownPolicy> {
        Ok(match self {
            Self::Policy(name) => policy::by_name(name)?,
            Self::Mps { limits: MpsLimits::Priority, .. } => Box::new(ByClass),
            Self::Mps { limits: MpsLimits::Percent(shares), .. } if confines => Box::new(Confined(shares.clone())),
            // A baseline's tenants know nothing of each other: every kernel takes all SMs that the process sees.
            Self::TimeSlice | Self::Mps { .. } => Box::new(DefaultSharing),
        })
    }
}

impl MpsLimits {
    /// The share of tenant `at` of `tenants`, percent, where shares are given or equal.
    pub fn percent(&self, at: usize, tenants: usize) -> Option<u8> {
        match self {
            Self::Percent(shares) => Some(share(shares.as_deref(), at, tenants)),
            Self::Default | Self::Priority => None,
        }
    }
}

/// The share of tenant `at`, percent.
fn share(shares: Option<&[u8]>, at: usize, tenants: usize) -> u8 {
    let equal = u8::try_from(100 / tenants.max(1)).unwrap_or(1).max(1);
    shares.and_then(|shares| shares.get(at).copied()).unwrap_or(equal)
}

/// Everybody everywhere; launches of latency tenants before those of throughput tenants. A client's priority says the same to MPS, which may take
/// either for a hint.
struct ByClass;

impl Policy for ByClass {
    fn name(&self) -> &'static str {
        "mps-priority"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let mut draft = DefaultSharing.plan(topology, tenants);
        for tenant in tenants {
            if let Some(draft) = draft.get_mut(&tenant.id) {
                draft.default.priority = match tenant.class {
                    Class::Latency => Priority::High,
                    Class::Throughput => Priority::Low,
                };
            }
        }
        draft
    }
}

/// Each tenant on its percentage of the SMs, for the simulator: a fixed set, beside the one before it, and around the end to the first SMs again where the
/// shares add up to more than the GPU. MPS chooses the SMs itself and does not say which.
struct Confined(Option<Vec<u8>>);

impl Policy for Confined {
    fn name(&self) -> &'static str {
        "mps-percent"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let mut draft = DefaultSharing.plan(topology, tenants);
        let tpcs = topology.all_tpcs().len();
        let mut first = 0;
        let count = draft.len();
        for (at, tenant) in draft.values_mut().enumerate() {
            let percent = u32::from(share(self.0.as_deref(), at, count));
            let wanted = u16::try_from(u32::from(tpcs) * percent / 100).unwrap_or(tpcs).clamp(1, tpcs.max(1));
            let set = (first..first + wanted).fold(TpcSet::EMPTY, |set, tpc| set.with(tpc % tpcs.max(1)));
            first = (first + wanted) % tpcs.max(1);
            tenant.default.tpcs = set;
            tenant.default.sms = topology.sms_of(set);
        }
        draft
    }
}

/// Shares that do not fit a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` has shares for {shares} tenants and the run has {tenants}; give one for each tenant, in the order of --tenant")]
pub struct SharesError {
    name: String,
    shares: usize,
    tenants: usize,
}

/// A `--policy` that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharingError {
    /// The name means nothing.
    #[error("`{name}` is no policy; choose from {}", Sharing::names().collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// The policy has no such part.
    #[error(transparent)]
    Ablation(#[from] policy::UnknownAblation),
    /// The shares after it are none.
    #[error("`{0}`: shares are whole percentages from 1 to 100, one for each tenant, such as mps-percent:40/60")]
    Shares(String),
    /// Kernels of another form are for MPS.
    #[error("`{0}`: only MPS baselines have a form of the kernels to choose, such as mps-default:tiles")]
    Form(String),
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimeSlice => f.write_str("time-slice"),
            Self::Policy(name) => f.write_str(name),
            Self::Mps { limits, grids } => {
                match limits {
                    MpsLimits::Default => f.write_str("mps-default")?,
                    MpsLimits::Priority => f.write_str("mps-priority")?,
                    MpsLimits::Percent(None) => f.write_str("mps-percent")?,
                    MpsLimits::Percent(Some(shares)) => {
                        let shares = shares.iter().map(u8::to_string).collect::<Vec<_>>().join("/");
                        write!(f, "mps-percent:{shares}")?;
                    }
                }
                f.write_str(if *grids == Grids::TilePerBlock { TILES } else { "" })
            }
        }
    }
}

impl From<Sharing> for String {
    fn from(sharing: Sharing) -> Self {
        sharing.to_string()
    }
}

impl FromStr for Sharing {
    type Err = SharingError;

    fn from_str(text: &str) -> Result<Self, SharingError> {
        let (name, grids) = match text.strip_suffix(TILES) {
            Some(name) => (name, Grids::TilePerBlock),
            None => (text, Grids::Persistent),
        };
        let mps = |limits| Ok(Self::Mps { limits, grids });
        match name {
            "mps-default" => mps(MpsLimits::Default),
            "mps-priority" => mps(MpsLimits::Priority),
            "mps-percent" => mps(MpsLimits::Percent(None)),
            _ if name.starts_with("mps-percent:") => {
                let shares =
                    name["mps-percent:".len()..].split('/').map(|share| share.parse().ok().filter(|share| (1..=100).contains(share)));
                let shares = shares.collect::<Option<Vec<u8>>>();
                mps(MpsLimits::Percent(Some(shares.ok_or_else(|| SharingError::Shares(text.into()))?)))
            }
            "time-slice" if grids == Grids::Persistent => Ok(Self::TimeSlice),
            "time-slice" => Err(SharingError::Form(text.into())),
            _ => match policy::ablations(name) {
                Ok(_) if grids == Grids::TilePerBlock => Err(SharingError::Form(text.into())),
                Ok(_) => Ok(Self::Policy(name.into())),
                Err(policy::UnknownPolicy::Name { .. }) => Err(SharingError::Unknown { name: text.into() }),
                Err(policy::UnknownPolicy::Ablation(ablation)) => Err(ablation.into()),
            },
        }
    }
}

impl TryFrom<String> for Sharing {
    type Error = SharingError;

    fn try_from(text: String) -> Result<Self, SharingError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use smidgen_runtime::device::Device as _;
    use smidgen_runtime::device::sim::{SimConfig, SimDevice};
    use smidgen_runtime::tenant::TenantId;

    use super::*;

    fn read(text: &str) -> Sharing {
        text.parse().unwrap()
    }

    fn demands(classes: &[Class]) -> Vec<TenantDemand> {
        (0..)
            .zip(classes)
            .map(|(id, &class)| TenantDemand { id: TenantId(id), class, slo: None, rate: None, kernels: Vec::new() })
            .collect()
    }

    #[test]
    fn every_name_is_read_back() {
        let more = [
            "mps-default:tiles",
            "mps-priority:tiles",
            "mps-percent:tiles",
            "mps-percent:40/60",
            "mps-percent:5/100:tiles",
            "slo:no-borrow+no-guard",
        ];
        for name in Sharing::names().chain(more) {
            assert_eq!(read(name).to_string(), name);
        }
    }

    #[test]
    fn a_name_that_cannot_be_read_says_why() {
        for (text, part) in [
            ("fair", "krisp-i"),
            ("slo:no-borow", "there are no-profile, no-borrow,"),
            ("fair:tiles", "no policy"),
            ("krisp-i:tiles", "mps-default:tiles"),
            ("time-slice:tiles", "mps-default:tiles"),
            ("mps-percent:", "from 1 to 100"),
            ("mps-percent:0/100", "from 1 to 100"),
            ("mps-percent:101", "mps-percent:40/60"),
            ("mps-percent:40/x:tiles", "mps-percent:40/60"),
            ("mps-default:40", "no policy"),
        ] {
            let error = text.parse::<Sharing>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn mps_baselines_run_in_both_forms_once_each() {
        let names = |asked: &[&str]| {
            let asked = asked.iter().map(|name| read(name)).collect();
            Sharing::with_both_forms(asked).iter().map(Sharing::to_string).collect::<Vec<_>>().join(" ")
        };
        let both = "time-slice mps-default mps-default:tiles mps-percent:40/60 mps-percent:40/60:tiles krisp-i";
        assert_eq!(names(&["time-slice", "mps-default", "mps-percent:40/60", "krisp-i"]), both);
        assert_eq!(names(&["mps-priority:tiles"]), "mps-priority:tiles");
        assert_eq!(names(&["mps-default:tiles", "mps-default"]), "mps-default:tiles mps-default");
    }

    #[test]
    fn an_ablation_of_the_engine_changes_its_kernels_form_or_its_graphs() {
        let engine = |name: &str| (read(name).grids(), read(name).is_eager());
        for name in ["slo", "slo:no-borrow+no-guard+no-profile", "krisp-i", "time-slice", "mps-default"] {
            assert_eq!(engine(name), (Grids::Persistent, false), "{name}");
        }
        assert_eq!(engine("slo:no-elasticity"), (Grids::Fixed, false));
        assert_eq!(engine("slo:no-graphs"), (Grids::Persistent, true));
        assert_eq!(engine("slo:no-graphs+no-elasticity"), (Grids::Fixed, true));
        assert_eq!(engine("mps-default:tiles"), (Grids::TilePerBlock, false));
    }

    #[test]
    fn simulated_percentages_are_sets_side_by_side_that_begin_anew_at_the_end() {
        let gpu = SimDevice::new(SimConfig::h200());
        let sets = |name: &str, tenants: usize| {
            let draft = read(name).policy(true).unwrap().plan(gpu.topology(), &demands(&vec![Class::Throughput; tenants]));
            draft.values().map(|tenant| (tenant.default.tpcs, tenant.default.sms.0)).collect::<Vec<_>>()
        };
        assert_eq!(sets("mps-percent", 2), [(TpcSet::range(0, 33), 66), (TpcSet::range(33, 66), 66)]);
        assert_eq!(sets("mps-percent:40/60", 2), [(TpcSet::range(0, 26), 52), (TpcSet::range(26, 65), 78)]);
        assert_eq!(sets("mps-percent:75/50", 2), [(TpcSet::range(0, 49), 98), (TpcSet::range(49, 66) | TpcSet::range(0, 16), 66)]);
        assert_eq!(sets("mps-percent:1/100", 2)[1], (TpcSet::range(0, 66), 132));
    }

    #[test]
    fn latency_tenants_come_first_under_mps_priority_alone() {
        let gpu = SimDevice::new(SimConfig::h200());
        let priorities = |name: &str| {
            let draft = read(name).policy(true).unwrap().plan(gpu.topology(), &demands(&[Class::Throughput, Class::Latency]));
            draft.values().map(|tenant| tenant.default.priority).collect::<Vec<_>>()
        };
        assert_eq!(priorities("mps-priority:tiles"), [Priority::Low, Priority::High]);
        assert_eq!(priorities("mps-default"), [Priority::Normal; 2]);
    }
}
