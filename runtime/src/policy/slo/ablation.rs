//! Parts of the policy that can be switched off by name, so that each part's worth can be measured.

use std::str::FromStr;

/// What `slo` does without. All false is the whole policy.
///
/// On the command line they stand behind the policy's name: `slo:no-borrow,no-bandwidth`, or `slo:no-borrow+no-bandwidth` where a comma would
/// end the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ablations {
    /// Every kernel counts as never profiled: tenants get equal parts.
    pub no_profile: bool,
    /// Nothing is lent and no sets overlap: each tenant keeps to the TPCs it owns.
    pub no_borrow: bool,
    /// Neighbours are predicted to cost nothing.
    pub no_bandwidth: bool,
    /// The board's power limit is predicted to lower no clock, and joules to cost nothing.
    pub no_power: bool,
    /// Borrowers have the priority of owners.
    pub no_guard: bool,
    /// A change of partition between two kernels is predicted to cost nothing.
    pub no_switch_budget: bool,
    /// For whoever launches: every request kernel by kernel ([`Session::launch_eagerly`](crate::launch::Session::launch_eagerly)). The policy itself plans the same.
    pub no_graphs: bool,
    /// For whoever launches: no kernel polls its grant ([`Grids::Fixed`](crate::launch::Grids::Fixed)). The policy itself plans the same.
    pub no_elasticity: bool,
}

/// A name that no ablation has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy `slo` has no ablation `{name}`; there are {}", Ablations::NAMES.join(", "))]
pub struct UnknownAblation {
    /// The name asked for.
    pub name: String,
}

impl Ablations {
    /// Every name that can stand behind `slo:`.
    pub const NAMES: [&str; 8] =
        ["no-profile", "no-borrow", "no-bandwidth", "no-power", "no-guard", "no-switch-budget", "no-graphs", "no-elasticity"];

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "no-profile" => &mut self.no_profile,
            "no-borrow" => &mut self.no_borrow,
            "no-bandwidth" => &mut self.no_bandwidth,
            "no-power" => &mut self.no_power,
            "no-guard" => &mut self.no_guard,
            "no-switch-budget" => &mut self.no_switch_budget,
            "no-graphs" => &mut self.no_graphs,
            "no-elasticity" => &mut self.no_elasticity,
            _ => return None,
        })
    }
}

impl FromStr for Ablations {
    type Err = UnknownAblation;

    /// Names from [`Ablations::NAMES`], separated by `,` or `+`.
    fn from_str(list: &str) -> Result<Self, UnknownAblation> {
        let mut ablations = Self::default();
        for name in list.split([',', '+']) {
            *ablations.switch(name).ok_or_else(|| UnknownAblation { name: name.to_owned() })? = true;
        }
        Ok(ablations)
    }
}
