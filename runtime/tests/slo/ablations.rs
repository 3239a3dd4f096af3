//! Parts of the policy switched off by name.

use smidgen_runtime::device::{Priority, Sms};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Ablations, Draft, TenantDemand, ablations, by_name};

use crate::models::{bert_large, larger, latency_tenant, llama_step, throughput_tenant};
use crate::topologies::h200;

fn pair() -> [TenantDemand; 2] {
    [latency_tenant(1, Some(2375), &llama_step()), throughput_tenant(2, &larger(bert_large(), 8))]
}

fn planned(name: &str) -> Draft {
    by_name(name).unwrap().plan(&h200(), &pair())
}

fn error(name: &str) -> String {
    by_name(name).err().map_or_else(|| panic!("`{name}` was accepted"), |error| error.to_string())
}

#[test]
fn every_ablation_has_a_name_and_several_may_be_listed() {
    for name in Ablations::NAMES {
        assert_ne!(name.parse::<Ablations>().unwrap(), Ablations::default(), "{name}");
        assert_eq!(ablations(&format!("slo:{name}")), Ok(name.parse().unwrap()));
    }
    let two = Ablations { no_borrow: true, no_graphs: true, ..Ablations::default() };
    assert_eq!(["no-borrow,no-graphs", "no-graphs+no-borrow"].map(str::parse), [Ok(two), Ok(two)]);
    assert_eq!(ablations("slo"), Ok(Ablations::default()));
    assert_eq!(ablations("krisp-i"), Ok(Ablations::default()));
}

#[test]
fn an_unknown_ablation_is_refused_with_those_that_exist() {
    let listed = "there are no-profile, no-borrow, no-bandwidth, no-power, no-guard, no-switch-budget, no-graphs, no-elasticity";
    assert_eq!(error("slo:no-borow"), format!("policy `slo` has no ablation `no-borow`; {listed}"));
    assert_eq!(error("slo:"), format!("policy `slo` has no ablation ``; {listed}"));
    assert!(error("krisp-i:no-borrow").starts_with("there is no policy `krisp-i:no-borrow`; there are exclusive,"));
}

#[test]
fn without_profiles_all_own_equal_parts_and_no_tenant_needs_profiling() {
    let draft = planned("slo:no-profile");
    assert!(draft.values().all(|tenant| tenant.default.sms == Sms(66) && tenant.kernels.is_empty()));
    assert!(!by_name("slo:no-profile").unwrap().needs_profiles());
    assert!(by_name("slo").unwrap().needs_profiles());
}

#[test]
fn without_borrowing_nobody_may_use_what_another_owns() {
    let draft = planned("slo:no-borrow");
    assert!(draft.values().all(|tenant| tenant.grant == tenant.owned));
    assert!(
        draft.values().flat_map(|tenant| tenant.kernels.values().map(|placed| tenant.owned.includes(placed.tpcs))).all(|inside| inside)
    );
}

#[test]
fn without_the_guard_borrowers_have_the_owners_priority() {
    let priorities = |name| planned(name).values().map(|tenant| tenant.default.priority).collect::<Vec<_>>();
    assert_eq!(priorities("slo:no-guard"), [Priority::High, Priority::High]);
    assert_eq!(priorities("slo"), [Priority::High, Priority::Normal]);
}

#[test]
fn what_others_read_changes_no_plan() {
    assert_eq!(planned("slo:no-graphs,no-elasticity"), planned("slo"));
}

#[test]
fn each_other_ablation_changes_the_plan_of_a_pair() {
    for name in ["no-profile", "no-borrow", "no-bandwidth", "no-guard", "no-switch-budget"] {
        assert_ne!(planned(&format!("slo:{name}")), planned("slo"), "{name}");
    }
    assert!(planned("slo").values().any(|tenant| tenant.grant == TpcSet::range(0, 66)));
}
