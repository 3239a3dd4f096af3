//! What holds for all topologies and tenants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use smidgen_runtime::device::{Priority, Sms, Topology};
use smidgen_runtime::launch::{Fingerprint, Work};
use smidgen_runtime::partition::{TpcSet, rungs};
use smidgen_runtime::policy::{Ablations, Adjustments, KernelDemand, Policy, Slo, TenantDemand};
use smidgen_runtime::profile::Curve;
use smidgen_runtime::tenant::{Class, TenantId};

use crate::models::{latency_tenant, request_us, throughput_tenant};
use crate::topologies::{any_topology, h200};

prop_compose! {
    /// Curves of any shape, also such as get worse with more SMs, and such as were measured on fewer or more SMs than there are.
    fn any_kernel()(
        launches in 0_u32..200,
        points in prop::collection::btree_map(1_u16..=300, 0.5_f64..5000.0, 0..8),
        flops in 0_u64..10_000_000_000,
        bytes in 0_u64..100_000_000,
    ) -> KernelDemand {
        let curve = Curve::new(points.into_iter().map(|(sms, us)| (Sms(sms), us)).collect()).map(Arc::new);
        KernelDemand { kernel: Fingerprint(0), launches, work: Work { flops, bytes }, curve }
    }
}

prop_compose! {
    fn any_tenant()(
        id in 0_u32..1000,
        latency in any::<bool>(),
        slo_us in prop::option::of(1_u64..1_000_000),
        rate in prop::option::of(0.1_f64..10_000.0),
        mut kernels in prop::collection::vec(any_kernel(), 0..6),
    ) -> TenantDemand {
        for (number, kernel) in (0..).zip(&mut kernels) {
            kernel.kernel = Fingerprint(number);
        }
        let class = if latency { Class::Latency } else { Class::Throughput };
        TenantDemand { id: TenantId(id), class, slo: slo_us.map(Duration::from_micros), rate, kernels }
    }
}

/// 1 to 16 tenants, in the order of their numbers and in another one.
fn any_tenants() -> impl Strategy<Value = (Vec<TenantDemand>, Vec<TenantDemand>)> {
    prop::collection::vec(any_tenant(), 1..=16)
        .prop_map(|tenants| BTreeMap::from_iter(tenants.into_iter().map(|tenant| (tenant.id, tenant))).into_values().collect::<Vec<_>>())
        .prop_flat_map(|tenants| (Just(tenants.clone()), Just(tenants).prop_shuffle()))
}

/// The whole policy and every subset of it that keeps the guard.
fn any_policy() -> impl Strategy<Value = Slo> {
    any::<[bool; 4]>().prop_map(|[no_profile, no_borrow, no_bandwidth, no_switch_budget]| {
        Slo::default().with_ablations(Ablations { no_profile, no_borrow, no_bandwidth, no_switch_budget, ..Ablations::default() })
    })
}

fn is_latency(tenants: &[TenantDemand], id: TenantId) -> bool {
    tenants.iter().any(|tenant| tenant.id == id && tenant.class == Class::Latency)
}

/// The tenants, their curves measured where profiles are: at the rungs.
fn at_rungs(gpu: &Topology, mut tenants: Vec<TenantDemand>) -> Vec<TenantDemand> {
    for kernel in tenants.iter_mut().flat_map(|tenant| &mut tenant.kernels) {
        let measured = kernel.curve.take();
        kernel.curve =
            measured.and_then(|curve| Curve::new(rungs(gpu).into_iter().map(|sms| (sms, curve.at(sms))).collect())).map(Arc::new);
    }
    tenants
}

/// The launches of one request that were profiled, if any.
fn profiled(tenant: &TenantDemand) -> Option<Vec<KernelDemand>> {
    let kernels: Vec<_> = tenant.kernels.iter().filter(|kernel| kernel.curve.is_some() && kernel.launches > 0).cloned().collect();
    (!kernels.is_empty()).then_some(kernels)
}

proptest! {
    #[test]
    fn every_tenant_owns_something_and_runs_inside_its_grant(policy in any_policy(), gpu in any_topology(), (tenants, _) in any_tenants()) {
        let draft = policy.plan(&gpu, &tenants);
        prop_assert_eq!(draft.keys().copied().collect::<Vec<_>>(), tenants.iter().map(|tenant| tenant.id).collect::<Vec<_>>());
        for (&id, tenant) in &draft {
            prop_assert!(!tenant.owned.is_empty() && tenant.grant.includes(tenant.owned) && gpu.all_tpcs().includes(tenant.grant));
            for placement in tenant.kernels.values().chain([&tenant.default]) {
                prop_assert!(!placement.tpcs.is_empty());
                prop_assert_eq!(placement.sms, gpu.sms_of(placement.tpcs));
                let room = if is_latency(&tenants, id) { tenant.owned } else { tenant.grant };
                prop_assert!(room.includes(placement.tpcs));
            }
            prop_assert!(tenant.owned.includes(tenant.default.tpcs), "a kernel that was never profiled may not poll its grant");
        }
    }

    #[test]
    fn only_throughput_tenants_own_tpcs_together_unless_tenants_outnumber_them(
        policy in any_policy(),
        gpu in any_topology(),
        (tenants, _) in any_tenants(),
    ) {
        prop_assume!(tenants.len() <= usize::from(gpu.tpcs()));
        let (mut seen, mut kept) = (TpcSet::EMPTY, TpcSet::EMPTY);
        for (&id, tenant) in &policy.plan(&gpu, &tenants) {
            let alone = is_latency(&tenants, id) || policy.ablations().no_borrow;
            let others = if alone { seen } else { kept };
            prop_assert!(others.is_disjoint(tenant.owned));
            seen = seen | tenant.owned;
            kept = if alone { kept | tenant.owned } else { kept };
        }
        if tenants.iter().any(|tenant| tenant.class == Class::Throughput) {
            prop_assert_eq!(seen, gpu.all_tpcs());
        }
    }

    #[test]
    fn nobody_uses_a_tpc_at_a_priority_above_its_owner_s(policy in any_policy(), gpu in any_topology(), (tenants, _) in any_tenants()) {
        let draft = policy.plan(&gpu, &tenants);
        for (&id, owner) in &draft {
            prop_assert_eq!(owner.default.priority, if is_latency(&tenants, id) { Priority::High } else { Priority::Normal });
            for other in draft.values().filter(|other| !(other.grant & owner.owned).is_empty()) {
                let shares = gpu.tpcs() >= tenants.len() as u16;
                for placement in other.kernels.values().chain([&other.default]).filter(|placement| !placement.tpcs.is_disjoint(owner.owned)) {
                    prop_assert!(!shares || placement.priority <= owner.default.priority);
                }
            }
        }
    }

    #[test]
    fn a_latency_tenant_s_tpcs_are_lent_to_every_throughput_tenant_and_to_no_other(gpu in any_topology(), (tenants, _) in any_tenants()) {
        prop_assume!(tenants.len() <= usize::from(gpu.tpcs()));
        let draft = Slo::default().plan(&gpu, &tenants);
        for (&owner, owned) in draft.iter().filter(|(id, _)| is_latency(&tenants, **id)).map(|(id, tenant)| (id, tenant.owned)) {
            for (&id, tenant) in draft.iter().filter(|(id, _)| **id != owner) {
                let borrows = if is_latency(&tenants, id) { TpcSet::EMPTY } else { owned };
                prop_assert_eq!(tenant.grant & owned, borrows);
            }
        }
    }

    #[test]
    fn the_order_of_tenants_does_not_matter_and_equal_inputs_give_equal_plans(
        policy in any_policy(), gpu in any_topology(), (tenants, shuffled) in any_tenants(),
    ) {
        let draft = policy.plan(&gpu, &tenants);
        prop_assert_eq!(&draft, &policy.plan(&gpu, &tenants));
        prop_assert_eq!(&draft, &policy.plan(&gpu, &shuffled));
        prop_assert_eq!(policy.forecast(&gpu, &tenants), policy.forecast(&gpu, &shuffled));
    }

    #[test]
    fn slos_are_predicted_to_be_met_whenever_they_can_be_met_together(gpu in any_topology(), (tenants, _) in any_tenants()) {
        // One after another: what queues need is another test's.
        let tenants: Vec<_> = at_rungs(&gpu, tenants).into_iter().map(|tenant| TenantDemand { rate: None, ..tenant }).collect();
        let policy = Slo::default().with_ablations("no-bandwidth".parse().unwrap());
        let sms = |tpcs: u16| tpcs * gpu.sms_per_tpc;
        let mut least = 0;
        for tenant in &tenants {
            let objective = tenant.slo.filter(|_| tenant.class == Class::Latency).zip(profiled(tenant));
            let needed = objective.map_or(Some(1), |(slo, kernels)| {
                let limit = 0.9 * slo.as_secs_f64() * 1e6;
                (1..=gpu.tpcs()).find(|&tpcs| request_us(&kernels, sms(tpcs)) <= limit * (1.0 - 1e-9))
            });
            // An unknown tenant with an SLO claims an equal share like one that is known.
            let unknown = tenant.class == Class::Latency && tenant.slo.is_some() && profiled(tenant).is_none();
            let Some(needed) = needed.filter(|_| !unknown) else { return Ok(()) };
            least += needed;
        }
        prop_assume!(least <= gpu.tpcs());
        for (id, forecast) in policy.forecast(&gpu, &tenants) {
            if let Some(limit) = forecast.limit_us {
                prop_assert!(forecast.latency_us <= limit * (1.0 + 1e-9), "{id:?}: {forecast:?}");
            }
        }
    }

    #[test]
    fn a_request_is_never_slower_than_if_all_of_it_ran_on_what_its_tenant_owns(
        mut policy in any_policy(), gpu in any_topology(), (tenants, _) in any_tenants(),
    ) {
        policy = policy.clone().with_ablations(Ablations { no_borrow: true, no_profile: false, ..policy.ablations() });
        let tenants = at_rungs(&gpu, tenants);
        let draft = policy.plan(&gpu, &tenants);
        for tenant in &tenants {
            let (Some(kernels), placed) = (profiled(tenant), &draft[&tenant.id]) else { continue };
            let us = |kernel: &KernelDemand| {
                let sms = placed.kernels.get(&kernel.kernel).unwrap_or(&placed.default).sms;
                f64::from(kernel.launches) * kernel.curve.as_ref().map_or(0.0, |curve| curve.at(sms))
            };
            let (placed_us, owned_us) = (kernels.iter().map(us).sum::<f64>(), request_us(&kernels, gpu.sms_of(placed.owned).0));
            prop_assert!(placed_us <= owned_us * (1.0 + 1e-9), "{placed_us} placed, {owned_us} on {:?}", placed.owned);
        }
    }

    #[test]
    fn a_tighter_margin_never_gives_a_latency_tenant_less(
        latencies in prop::collection::vec(100.0_f64..150.0, 17), reached_on in 1_u16..66, times in 0.9_f64..1.5,
        rate in prop::option::of(1.0_f64..10_000.0), margins in [0.3_f64..1.5, 0.3_f64..1.5],
    ) {
        let gpu = h200();
        let curve = Curve::new(rungs(&gpu).into_iter().zip(latencies).collect()).map(Arc::new);
        let kernels = [KernelDemand { kernel: Fingerprint(0), launches: 1, work: Work::default(), curve }];
        // Within reach of both margins, of one, or of none.
        let slo_us = request_us(&kernels, 2 * reached_on) * times;
        let chat = TenantDemand { rate, ..latency_tenant(1, Some(slo_us as u64 + 1), &kernels) };
        let tenants = [chat, throughput_tenant(2, &[])];
        let owned = |margin| {
            let adjustments = Adjustments { margins: [(TenantId(1), margin)].into(), ..Adjustments::default() };
            Slo::default().with_adjustments(adjustments).plan(&gpu, &tenants)[&TenantId(1)].owned.len()
        };
        let [one, other] = margins;
        prop_assert!(owned(one.min(other)) >= owned(one.max(other)));
    }
}
