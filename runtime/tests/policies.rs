//! What each policy promises, first by example, then for all topologies and tenants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use smidgen_runtime::device::{Priority, Sms};
use smidgen_runtime::launch::{Fingerprint, Walls, Work};
use smidgen_runtime::partition::{TpcSet, rungs};
use smidgen_runtime::policy::{
    DefaultSharing, Draft, DraftPlacement, Exclusive, KernelDemand, Krisp, ModelRightsize, NAMES, Policy, StaticEqual, TenantDemand,
    by_name,
};
use smidgen_runtime::profile::Curve;
use smidgen_runtime::tenant::{Class, TenantId};

#[path = "support/topologies.rs"]
mod topologies;

use topologies::{any_topology, gpu, h200};

const WALLED: Walls = Walls { grid: true, grant: true, partition: true };

fn unprofiled(number: u64, launches: u32) -> KernelDemand {
    KernelDemand { kernel: Fingerprint(number), launches, work: Work::default(), curve: None }
}

fn profiled(number: u64, launches: u32, points: Vec<(Sms, f64)>) -> KernelDemand {
    KernelDemand { curve: Curve::new(points).map(Arc::new), ..unprofiled(number, launches) }
}

/// A kernel that takes `us` microseconds on `minimum` SMs or more, and proportionally longer on fewer.
fn kernel(number: u64, launches: u32, minimum: u16, us: f64) -> KernelDemand {
    let latency = |sms: Sms| us * (f64::from(minimum) / f64::from(sms.0)).max(1.0);
    profiled(number, launches, rungs(&h200()).into_iter().map(|sms| (sms, latency(sms))).collect())
}

fn tenant(id: u32, kernels: &[KernelDemand]) -> TenantDemand {
    TenantDemand { id: TenantId(id), class: Class::Throughput, slo: None, rate: None, kernels: kernels.to_vec() }
}

/// The SMs of each tenant's default placement, by rising tenant number.
fn sizes(draft: &Draft) -> Vec<u16> {
    draft.values().map(|tenant| tenant.default.sms.0).collect()
}

/// The TPCs that more than one tenant may use.
fn shared_tpcs(draft: &Draft) -> TpcSet {
    let mut seen = TpcSet::EMPTY;
    draft.values().fold(TpcSet::EMPTY, |shared, tenant| {
        let twice = seen & tenant.grant;
        seen = seen | tenant.grant;
        shared | twice
    })
}

fn placement(draft: &Draft, tenant: u32, kernel: u64) -> DraftPlacement {
    draft[&TenantId(tenant)].kernels[&Fingerprint(kernel)]
}

#[test]
fn exclusive_and_default_sharing_put_everybody_on_the_whole_gpu_without_walls() {
    let tenants = [tenant(1, &[kernel(1, 1, 8, 10.0)]), tenant(2, &[])];
    for draft in [Exclusive.plan(&h200(), &tenants), DefaultSharing.plan(&h200(), &tenants)] {
        assert_eq!(sizes(&draft), [132, 132]);
        assert!(draft.values().all(|tenant| tenant.walls == Walls::default() && tenant.grant == h200().all_tpcs()));
    }
}

#[test]
fn static_equal_gives_each_a_run_of_tpcs_and_the_remainder_to_the_first() {
    let draft = StaticEqual.plan(&h200(), &[tenant(1, &[]), tenant(2, &[]), tenant(3, &[]), tenant(4, &[])]);
    let grants: Vec<TpcSet> = draft.values().map(|tenant| tenant.grant).collect();
    assert_eq!(grants, [TpcSet::range(0, 17), TpcSet::range(17, 34), TpcSet::range(34, 50), TpcSet::range(50, 66)]);
    assert_eq!(sizes(&draft), [34, 34, 32, 32]);
    assert!(draft.values().all(|tenant| tenant.walls == WALLED));
}

#[test]
fn model_rightsize_sizes_a_tenant_by_its_whole_request_not_by_its_neediest_kernel() {
    // The second kernel wants the whole GPU, but it is 0.1% of the request.
    let encoder = tenant(1, &[kernel(1, 10, 16, 100.0), kernel(2, 1, 132, 1.0)]);
    let draft = ModelRightsize::default().plan(&h200(), &[encoder, tenant(2, &[kernel(3, 1, 32, 100.0)])]);
    // Knees of 8 and 16 TPCs; the 42 left over are shared out in the same proportion.
    assert_eq!(sizes(&draft), [44, 88]);
    assert!(draft.values().all(|tenant| tenant.kernels.is_empty() && tenant.walls == WALLED));
}

#[test]
fn model_rightsize_shrinks_in_proportion_where_knees_do_not_fit() {
    let draft = ModelRightsize::default().plan(&h200(), &[tenant(1, &[kernel(1, 1, 132, 5.0)]), tenant(2, &[kernel(1, 1, 132, 5.0)])]);
    assert_eq!(sizes(&draft), [66, 66]);
}

#[test]
fn a_looser_tolerance_lowers_minimum_and_knee() {
    let sloping = tenant(1, &[kernel(1, 1, 64, 5.0)]);
    let steep = tenant(2, &[profiled(2, 1, vec![(Sms(24), 100.0), (Sms(32), 10.0), (Sms(132), 10.0)])]);
    let tenants = [sloping, steep];
    let minimum = |policy: Krisp| placement(&policy.plan(&h200(), &tenants), 1, 1).sms;
    assert_eq!([minimum(Krisp::overlapping()), minimum(Krisp::overlapping().with_tolerance(1.1))], [Sms(64), Sms(32)]);
    // Knees of 32 and 16 TPCs become 16 and 16.
    assert_eq!(sizes(&ModelRightsize::default().plan(&h200(), &tenants)), [88, 44]);
    assert_eq!(sizes(&ModelRightsize::default().with_tolerance(1.1).plan(&h200(), &tenants)), [66, 66]);
}

#[test]
fn krisp_o_gives_each_kernel_its_own_minimum_and_no_grant_wall() {
    let draft = Krisp::overlapping().plan(&h200(), &[tenant(1, &[kernel(1, 4, 8, 10.0), kernel(2, 1, 64, 10.0), unprofiled(3, 1)])]);
    assert_eq!(placement(&draft, 1, 1).sms, Sms(8));
    assert_eq!(placement(&draft, 1, 2).sms, Sms(64));
    let tenant = &draft[&TenantId(1)];
    assert!(!tenant.kernels.contains_key(&Fingerprint(3)), "an unprofiled kernel goes by the default");
    assert_eq!(tenant.default.sms, Sms(132));
    assert_eq!(tenant.walls, Walls { grid: true, grant: false, partition: true });
}

#[test]
fn a_minimum_between_rungs_is_rounded_up_to_the_next_rung() {
    let odd = tenant(1, &[profiled(1, 1, vec![(Sms(17), 5.0), (Sms(132), 5.0)])]);
    assert_eq!(placement(&Krisp::overlapping().plan(&h200(), &[odd]), 1, 1).sms, Sms(24));
}

#[test]
fn krisp_o_keeps_off_the_tpcs_that_others_are_expected_to_occupy() {
    // The first tenant is nearly always on 16 SMs of one GPC, and now and then everywhere.
    let busy = tenant(1, &[kernel(1, 100, 16, 10.0), kernel(2, 1, 132, 10.0)]);
    let draft = Krisp::overlapping().plan(&h200(), &[busy, tenant(2, &[kernel(3, 1, 96, 10.0)])]);
    assert!(placement(&draft, 2, 3).tpcs.is_disjoint(placement(&draft, 1, 1).tpcs));
}

#[test]
fn krisp_o_weighs_occupancy_by_time_not_by_number_of_kernels() {
    let gpu = gpu(2, &[8, 8, 8]);
    // Two short kernels of the first tenant run on the first GPC and a long one everywhere; the second tenant never leaves the second GPC.
    let wide = tenant(1, &[kernel(1, 1, 16, 1.0), kernel(2, 1, 8, 1.0), kernel(3, 1, 48, 1000.0)]);
    let narrow = tenant(2, &[kernel(4, 1, 16, 10.0)]);
    let draft = Krisp::overlapping().plan(&gpu, &[wide, narrow, tenant(3, &[kernel(5, 1, 32, 10.0)])]);
    assert_eq!(placement(&draft, 1, 1).tpcs, TpcSet::range(0, 8));
    assert_eq!(placement(&draft, 2, 4).tpcs, TpcSet::range(8, 16));
    assert_eq!(placement(&draft, 3, 5).tpcs, TpcSet::range(0, 8) | TpcSet::range(16, 24));
}

#[test]
fn the_distribution_decides_how_many_gpcs_a_kernel_is_spread_over() {
    let gpu = h200();
    let gpcs_of = |name: &str| {
        let draft = by_name(name).unwrap().plan(&gpu, &[tenant(1, &[kernel(1, 1, 24, 10.0)])]);
        let (mut first, mut counts) = (0, Vec::new());
        for &tpcs in &gpu.tpcs_per_gpc {
            counts.push((placement(&draft, 1, 1).tpcs & TpcSet::range(first, first + tpcs)).len());
            first += tpcs;
        }
        counts
    };
    assert_eq!(gpcs_of("krisp-o"), [6, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(gpcs_of("krisp-o-packed"), [9, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(gpcs_of("krisp-o-distributed"), [2, 2, 2, 2, 1, 1, 1, 1]);
}

#[test]
fn krisp_i_divides_the_gpu_by_what_kernels_need_over_time() {
    // Needs over time: 8 TPCs always, against 32 TPCs for half of the time and 8 for the other half, 20 on average.
    let narrow = tenant(1, &[kernel(1, 1, 16, 10.0)]);
    let wide = tenant(2, &[kernel(2, 1, 64, 10.0), kernel(3, 1, 16, 10.0)]);
    let draft = Krisp::isolated().plan(&h200(), &[narrow, wide]);
    assert!(shared_tpcs(&draft).is_empty());
    assert_eq!(sizes(&draft), [38, 94]);
    assert_eq!(placement(&draft, 1, 1).sms, Sms(16));
    assert_eq!(placement(&draft, 2, 2).sms, Sms(64));
    assert_eq!(placement(&draft, 2, 3).sms, Sms(16));
    assert!(draft.values().all(|tenant| tenant.walls == WALLED));
}

#[test]
fn krisp_i_hands_what_a_tenant_cannot_use_to_those_who_can() {
    // On average the first needs 16 TPCs and the second 10, but the first can never use more than 16.
    let steady = tenant(1, &[kernel(1, 1, 32, 10.0)]);
    let bursty = tenant(2, &[kernel(2, 9, 8, 10.0), kernel(3, 1, 120, 10.0)]);
    assert_eq!(sizes(&Krisp::isolated().plan(&h200(), &[steady, bursty])), [32, 100]);
}

#[test]
fn krisp_i_gives_a_kernel_its_whole_region_where_its_minimum_does_not_fit() {
    let draft = Krisp::isolated().plan(&h200(), &[tenant(1, &[kernel(1, 1, 132, 5.0)]), tenant(2, &[kernel(2, 1, 132, 5.0)])]);
    assert_eq!(placement(&draft, 1, 1).sms, Sms(66));
    assert_eq!(placement(&draft, 1, 1).tpcs, draft[&TenantId(1)].grant);
}

#[test]
fn kernels_with_equal_minimum_share_one_set_so_that_few_partitions_are_made() {
    let kernels: Vec<KernelDemand> = (0..40).map(|number| kernel(number, 1, 16 + 16 * (number % 2) as u16, 10.0)).collect();
    for policy in [Krisp::overlapping(), Krisp::isolated()] {
        let draft = policy.plan(&h200(), &[tenant(1, &kernels), tenant(2, &kernels)]);
        for tenant in draft.values() {
            assert_eq!(tenant.kernels.values().map(|placement| placement.tpcs).collect::<BTreeSet<_>>().len(), 2);
        }
    }
}

#[test]
fn a_tenant_that_has_not_run_yet_gets_an_equal_share() {
    let tenants = [tenant(1, &[]), tenant(2, &[kernel(1, 1, 132, 10.0)]), tenant(3, &[unprofiled(2, 1)])];
    for name in ["static-equal", "model-rightsize", "krisp-i"] {
        let draft = by_name(name).unwrap().plan(&h200(), &tenants);
        assert_eq!(sizes(&draft), [44, 44, 44], "{name}");
    }
}

#[test]
fn tenants_that_outnumber_the_tpcs_share_them_in_turn() {
    let tiny = gpu(2, &[2, 1]);
    let tenants: Vec<TenantDemand> = (0..5).map(|id| tenant(id, &[kernel(1, 1, 64, 10.0)])).collect();
    for name in ["static-equal", "model-rightsize", "krisp-i"] {
        let draft = by_name(name).unwrap().plan(&tiny, &tenants);
        assert_eq!(sizes(&draft), [2; 5], "{name}");
        assert_eq!(shared_tpcs(&draft).len(), 2, "{name}: five tenants on three TPCs leave one TPC to one tenant alone");
        assert!(draft.values().all(|tenant| tenant.walls == WALLED), "{name}");
    }
}

#[test]
fn a_policy_is_found_by_its_own_name_and_no_other() {
    for name in NAMES {
        assert_eq!(by_name(name).unwrap().name(), name);
    }
    let Err(error) = by_name("krips-i") else { panic!("a misspelt name was accepted") };
    assert!(error.to_string().starts_with("there is no policy `krips-i`; there are exclusive, default-sharing,"), "{error}");
}

#[test]
fn no_tenants_make_an_empty_draft() {
    for name in NAMES {
        assert_eq!(by_name(name).unwrap().plan(&h200(), &[]), Draft::new());
    }
}

prop_compose! {
    /// Curves of any shape, also such as get worse with more SMs, and such as were measured on fewer or more SMs than there are.
    fn any_kernel()(
        number in 0_u64..8,
        launches in 0_u32..200,
        points in prop::collection::btree_map(1_u16..=300, 0.5_f64..5000.0, 0..8),
    ) -> KernelDemand {
        profiled(number, launches, points.into_iter().map(|(sms, us)| (Sms(sms), us)).collect())
    }
}

prop_compose! {
    fn any_tenant()(id in 0_u32..1000, latency in any::<bool>(), kernels in prop::collection::vec(any_kernel(), 0..6)) -> TenantDemand {
        TenantDemand { class: if latency { Class::Latency } else { Class::Throughput }, ..tenant(id, &kernels) }
    }
}

/// 1 to 16 tenants, in the order of their numbers and in another one.
fn any_tenants() -> impl Strategy<Value = (Vec<TenantDemand>, Vec<TenantDemand>)> {
    prop::collection::vec(any_tenant(), 1..=16)
        .prop_map(|tenants| BTreeMap::from_iter(tenants.into_iter().map(|tenant| (tenant.id, tenant))).into_values().collect::<Vec<_>>())
        .prop_flat_map(|tenants| (Just(tenants.clone()), Just(tenants).prop_shuffle()))
}

const WALLED_POLICIES: [&str; 5] = ["static-equal", "model-rightsize", "krisp-i", "krisp-i-packed", "krisp-i-distributed"];

proptest! {
    #[test]
    fn every_tenant_gets_sound_placements(name in prop::sample::select(&NAMES), gpu in any_topology(), (tenants, _) in any_tenants()) {
        let draft = by_name(name).unwrap().plan(&gpu, &tenants);
        prop_assert_eq!(draft.keys().copied().collect::<Vec<_>>(), tenants.iter().map(|tenant| tenant.id).collect::<Vec<_>>());
        for tenant in draft.values() {
            prop_assert!(gpu.all_tpcs().includes(tenant.grant));
            prop_assert!(!tenant.owned.is_empty() && tenant.grant.includes(tenant.owned));
            for placement in tenant.kernels.values().chain([&tenant.default]) {
                prop_assert!(!placement.tpcs.is_empty());
                prop_assert!(tenant.grant.includes(placement.tpcs));
                prop_assert_eq!(placement.sms, gpu.sms_of(placement.tpcs));
                prop_assert!(placement.priority == Priority::Normal || name == "slo");
            }
        }
    }

    #[test]
    fn the_order_of_tenants_does_not_matter_and_equal_inputs_give_equal_drafts(
        name in prop::sample::select(&NAMES), gpu in any_topology(), (tenants, shuffled) in any_tenants(),
    ) {
        let policy = by_name(name).unwrap();
        let draft = policy.plan(&gpu, &tenants);
        prop_assert_eq!(&draft, &policy.plan(&gpu, &tenants));
        prop_assert_eq!(&draft, &policy.plan(&gpu, &shuffled));
    }

    #[test]
    fn walled_tenants_share_nothing_unless_they_outnumber_the_tpcs(
        name in prop::sample::select(&WALLED_POLICIES), gpu in any_topology(), (tenants, _) in any_tenants(),
    ) {
        let draft = by_name(name).unwrap().plan(&gpu, &tenants);
        let used = draft.values().fold(TpcSet::EMPTY, |used, tenant| used | tenant.grant);
        prop_assert_eq!(used, gpu.all_tpcs());
        if tenants.len() <= usize::from(gpu.tpcs()) {
            prop_assert_eq!(shared_tpcs(&draft), TpcSet::EMPTY);
        } else {
            let most = tenants.len().div_ceil(gpu.tpcs().into());
            for tpc in gpu.all_tpcs().iter() {
                prop_assert!(draft.values().filter(|tenant| tenant.grant.contains(tpc)).count() <= most);
            }
            prop_assert!(draft.values().all(|tenant| tenant.grant.len() == 1));
        }
    }

    #[test]
    fn krisp_o_kernels_get_their_minimum_and_krisp_i_kernels_that_or_their_region(gpu in any_topology(), (tenants, _) in any_tenants()) {
        let overlapping = Krisp::overlapping().plan(&gpu, &tenants);
        let isolated = Krisp::isolated().plan(&gpu, &tenants);
        for tenant in &tenants {
            // Of a kernel listed twice only the last mention counts.
            let kernels: BTreeMap<_, _> = tenant.kernels.iter().filter_map(|kernel| Some((kernel.kernel, kernel.curve.as_ref()?))).collect();
            prop_assert_eq!(overlapping[&tenant.id].kernels.keys().collect::<Vec<_>>(), kernels.keys().collect::<Vec<_>>());
            for (kernel, curve) in kernels {
                let minimum = curve.minimum_sms(0.02).min(gpu.sms);
                prop_assert!(overlapping[&tenant.id].kernels[&kernel].sms >= minimum);
                let tenant = &isolated[&tenant.id];
                prop_assert!(tenant.kernels[&kernel].sms >= minimum || tenant.kernels[&kernel].tpcs == tenant.grant);
            }
        }
    }

    #[test]
    fn krisp_asks_for_no_more_partitions_than_the_ladder_has_rungs(gpu in any_topology(), (tenants, _) in any_tenants()) {
        for policy in [Krisp::overlapping(), Krisp::isolated()] {
            for tenant in policy.plan(&gpu, &tenants).values() {
                let sets: BTreeSet<TpcSet> = tenant.kernels.values().map(|placement| placement.tpcs).collect();
                prop_assert!(sets.len() <= rungs(&gpu).len());
            }
        }
    }
}
