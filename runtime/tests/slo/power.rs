//! The power budget: what energies change in a plan once the board's limit binds, and that they change nothing before.

use std::sync::Arc;

use proptest::prelude::*;
use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Fingerprint, Work};
use smidgen_runtime::partition::rungs;
use smidgen_runtime::policy::{Adjustments, KernelDemand, Policy, PowerForecast, Slo, TenantDemand};
use smidgen_runtime::profile::{Board, Curve, Energy};
use smidgen_runtime::tenant::TenantId;

use crate::models::{bert_base, decode_step, encode_64, latency_tenant, throughput_tenant};
use crate::topologies::{gpu, h200};

/// An H200's: 570 W above idle.
const BOARD: Board = Board { sms: Sms(132), idle_w: 130.0, limit_w: 700.0 };
const BUDGET_W: f64 = 570.0;
const COUNTS: [u16; 4] = [16, 32, 64, 132];

/// The kernels, each drawing `watts(n)` above idle on `n` SMs while it runs.
fn drawing(kernels: Vec<KernelDemand>, watts: impl Fn(f64) -> f64) -> Vec<KernelDemand> {
    let with_energy = |kernel: KernelDemand| {
        let curve = kernel.curve.as_deref().map(|curve| {
            let points = COUNTS.map(|sms| (Sms(sms), watts(f64::from(sms)) * curve.at(Sms(sms))));
            curve.clone().with_energy(Energy::new(BOARD, points.to_vec()).map(Arc::new))
        });
        KernelDemand { curve: curve.map(Arc::new), ..kernel }
    };
    kernels.into_iter().map(with_energy).collect()
}

fn without_energy(tenants: &[TenantDemand]) -> Vec<TenantDemand> {
    let mut tenants = tenants.to_vec();
    for kernel in tenants.iter_mut().flat_map(|tenant| &mut tenant.kernels) {
        kernel.curve = kernel.curve.take().map(|curve| Arc::new(Curve::clone(&curve).with_energy(None)));
    }
    tenants
}

fn without(list: &str) -> Slo {
    Slo::default().with_ablations(list.parse().unwrap())
}

fn power(tenants: &[TenantDemand]) -> PowerForecast {
    Slo::default().power(&h200(), tenants).unwrap()
}

fn owned(policy: &Slo, tenants: &[TenantDemand]) -> Vec<u16> {
    policy.plan(&h200(), tenants).values().map(|tenant| tenant.owned.len()).collect()
}

/// A request of one kernel that takes `us(n)` on `n` SMs and moves nothing.
fn kernel(number: u64, launches: u32, us: impl Fn(f64) -> f64) -> KernelDemand {
    let points = rungs(&h200()).into_iter().map(|sms| (sms, us(f64::from(sms.0)))).collect();
    let work = Work { flops: 1_000_000, bytes: 0 };
    KernelDemand { kernel: Fingerprint(number), launches, work, curve: Curve::new(points).map(Arc::new) }
}

/// One that scales to the last SM, and draws so many watts on each.
fn scaling(watts_per_sm: f64) -> Vec<KernelDemand> {
    drawing(vec![kernel(1, 10, |sms| 60_000.0 / sms)], |sms| watts_per_sm * sms)
}

#[test]
fn at_the_limit_sms_go_to_the_tenant_that_takes_fewer_joules_and_all_together_do_more_for_each_joule() {
    let (hungry, frugal) = (9.0, 3.0);
    let tenants = [throughput_tenant(1, &scaling(hungry)), throughput_tenant(2, &scaling(frugal))];
    let (aware, unaware) = (owned(&Slo::default(), &tenants), owned(&without("no-power"), &tenants));
    assert_eq!(unaware, [33, 33]);
    assert!(aware[0] < 30 && aware[0] + aware[1] == 66, "{aware:?}");
    // Nobody moves bytes, so rates follow the clock, and the draw its power to the 2.3.
    let joules_per_result = |tpcs: &[u16]| {
        let sms = [0, 1].map(|at| 2.0 * f64::from(tpcs[at]));
        let clock = (BUDGET_W / (hungry * sms[0] + frugal * sms[1])).powf(1.0 / 2.3);
        assert!(clock < 1.0);
        BUDGET_W / (clock * (sms[0] + sms[1]))
    };
    assert!(joules_per_result(&aware) < 0.97 * joules_per_result(&unaware));
    // Nobody starves for it.
    assert!(aware[0] >= 16, "{aware:?}");
}

#[test]
fn below_the_limit_energies_change_nothing() {
    let tenants = [
        latency_tenant(1, Some(1200), &drawing(decode_step(), |sms| sms)),
        throughput_tenant(2, &drawing(encode_64(), |sms| 2.0 * sms)),
        throughput_tenant(3, &scaling(3.0)),
    ];
    assert_eq!(power(&tenants).clock, 1.0);
    assert_eq!(Slo::default().plan(&h200(), &tenants), without("no-power").plan(&h200(), &tenants));
    assert_eq!(Slo::default().forecast(&h200(), &tenants), without("no-power").forecast(&h200(), &tenants));
}

#[test]
fn four_encoders_in_quarters_are_predicted_to_run_at_the_limit_and_at_about_the_clock_that_was_measured() {
    // Each draws 262 W on its quarter alone. Measured together on an H200: 693 W, and 1545 of 1980 MHz.
    let encoders = drawing(bert_base(), |sms| 262.0 * sms / 32.0);
    let together = power(&[1, 2, 3, 4].map(|id| throughput_tenant(id, &encoders)));
    assert_eq!((together.board_w, together.limit_w), (700.0, 700.0));
    assert!((together.clock - 1545.0 / 1980.0).abs() < 0.06, "{together:?}");
    let draft = Slo::default().plan(&h200(), &[1, 2, 3, 4].map(|id| throughput_tenant(id, &encoders)));
    assert!(draft.values().all(|tenant| (16..=17).contains(&tenant.owned.len())));
    // Two that draw as much fit: 654 W, or less for what they cost each other. Measured were 658 at the full clock.
    let pair = drawing(bert_base(), |_| 262.0);
    let pair = power(&[throughput_tenant(1, &pair), throughput_tenant(2, &pair)]);
    assert!(pair.clock == 1.0 && (560.0..=654.0).contains(&pair.board_w) && pair.board_w == pair.unlimited_w, "{pair:?}");
}

#[test]
fn a_latency_tenant_is_sized_and_forecast_for_the_clock_that_its_neighbour_leaves() {
    let tenants = |watts: f64| [latency_tenant(1, Some(20_000), &scaling(1.0)), throughput_tenant(2, &scaling(watts))];
    let planned = |watts: f64| {
        let tenants = tenants(watts);
        let forecast = Slo::default().forecast(&h200(), &tenants)[&TenantId(1)];
        assert!(forecast.latency_us <= forecast.limit_us.unwrap(), "{watts}: {forecast:?}");
        (owned(&Slo::default(), &tenants)[0], forecast.slowdown)
    };
    let watts = [1.0, 4.0, 8.0, 12.0, 16.0];
    let planned = watts.map(planned);
    assert!(planned.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{planned:?}");
    assert!(planned[0].0 < planned[4].0, "{planned:?}");
    assert_eq!(planned[0].1, 1.0);
    assert!(planned[4].1 > 1.2, "{planned:?}");
    let unaware = owned(&without("no-power"), &tenants(16.0))[0];
    assert_eq!(unaware, planned[0].0);
}

#[test]
fn a_tenant_at_a_known_rate_draws_for_what_it_serves() {
    let chat = latency_tenant(1, Some(20_000), &scaling(4.0));
    let pair = |rate| [TenantDemand { rate, ..chat.clone() }, throughput_tenant(2, &scaling(4.0))];
    let at = |rate| without("no-borrow").power(&h200(), &pair(rate)).unwrap().unlimited_w;
    // A request takes 4 * 60,000 * 10 uJ, 2.4 J, on any number of SMs.
    let difference = at(Some(50.0)) - at(Some(20.0));
    assert!(at(Some(50.0)) < at(None));
    let neighbour = |rate| f64::from(owned(&Slo::default(), &pair(rate))[1]);
    let moved = 8.0 * (neighbour(Some(50.0)) - neighbour(Some(20.0)));
    assert!((difference - moved - 30.0 * 2.4).abs() < 5.0, "{difference} W, of which the neighbour {moved}");
}

#[test]
fn who_borrows_draws_for_what_is_lent_while_its_owner_rests() {
    // Each SM draws 4 W for whoever works on it, and a launch in a hundred of whose time is a gap.
    for rate in [1.0, 20.0, 50.0, 90.0] {
        let chat = TenantDemand { rate: Some(rate), ..latency_tenant(1, Some(20_000), &scaling(4.0)) };
        for neighbours in
            [vec![throughput_tenant(2, &scaling(4.0))], vec![throughput_tenant(2, &scaling(4.0)), throughput_tenant(3, &scaling(4.0))]]
        {
            let tenants: Vec<TenantDemand> = std::iter::once(chat.clone()).chain(neighbours).collect();
            let drawn = power(&tenants).unlimited_w - BOARD.idle_w;
            assert!((drawn - 4.0 * 132.0).abs() < 12.0, "{drawn} W at {rate} requests a second, {} tenants", tenants.len());
            assert!(without("no-borrow").power(&h200(), &tenants).unwrap().unlimited_w - BOARD.idle_w <= drawn);
        }
    }
}

#[test]
fn a_tenant_without_work_draws_nothing() {
    let tenants = [throughput_tenant(1, &scaling(6.0)), throughput_tenant(2, &scaling(6.0))];
    let idle = Adjustments { idle: [TenantId(2)].into(), ..Adjustments::default() };
    let alone = Slo::default().with_adjustments(idle).power(&h200(), &tenants).unwrap().unlimited_w;
    // On 65 of 66 TPCs, a launch in a hundred of whose time is a gap.
    assert!((alone - 130.0 - 130.0 * 6.0).abs() < 12.0, "{alone}");
}

/// One long kernel that scales, one that gains nothing beyond 24 SMs and draws for all that it holds, and what it takes on fewer.
fn mixed(slower: f64) -> Vec<KernelDemand> {
    let flat =
        kernel(2, 10, move |sms| if sms < 24.0 { 500.0 * slower * 24.0 / sms } else { 500.0 * if sms < 32.0 { slower } else { 1.0 } });
    let mut kernels = drawing(vec![kernel(1, 10, |sms| 60_000.0 / sms)], |sms| 6.0 * sms);
    kernels.extend(drawing(vec![flat], |sms| 6.0 * sms));
    kernels
}

#[test]
fn at_the_limit_a_kernel_gets_the_room_with_the_fewest_joules_of_those_that_are_as_quick() {
    let sms = |policy: &Slo, slower: f64| {
        let tenants = [throughput_tenant(1, &mixed(slower)), throughput_tenant(2, &scaling(6.0))];
        let draft = policy.plan(&h200(), &tenants);
        let tenant = &draft[&TenantId(1)];
        (tenant.kernels.get(&Fingerprint(2)).unwrap_or(&tenant.default).sms.0, tenant.default.sms.0)
    };
    let (chosen, whole) = sms(&Slo::default(), 1.0);
    assert!(chosen <= 24 && whole > 40, "{chosen} of {whole}");
    let (chosen, whole) = sms(&without("no-power"), 1.0);
    assert_eq!(chosen, whole);
    // 5% slower on 24 SMs: nothing is saved that counts, but 32 are as quick as all.
    let (chosen, _) = sms(&Slo::default(), 1.05);
    assert_eq!(chosen, 32);
}

#[test]
fn a_tenant_of_which_no_energy_is_known_leaves_plans_as_they_were() {
    let tenants = [throughput_tenant(1, &scaling(12.0)), throughput_tenant(2, &scaling(4.0)), throughput_tenant(3, &bert_base())];
    assert_eq!(Slo::default().power(&h200(), &tenants), None);
    assert_eq!(Slo::default().plan(&h200(), &tenants), without("no-power").plan(&h200(), &tenants));
    let unseen = [throughput_tenant(1, &scaling(12.0)), throughput_tenant(2, &[])];
    assert_eq!(Slo::default().power(&h200(), &unseen), None);
    assert_eq!(without("no-power").power(&h200(), &tenants[..2]), None);
    assert!(Slo::default().power(&h200(), &tenants[..2]).is_some());
    assert_eq!(Slo::default().power(&h200(), &[]), None);
}

#[test]
fn a_kernel_whose_power_was_not_read_counts_as_drawing_what_its_tenant_s_others_do() {
    let known = drawing(vec![kernel(1, 10, |sms| 30_000.0 / sms), kernel(2, 5, |sms| 60_000.0 / sms)], |sms| 4.0 * sms);
    let half = vec![known[0].clone(), kernel(2, 5, |sms| 60_000.0 / sms)];
    let drawn = |kernels: &[KernelDemand]| power(&[throughput_tenant(1, kernels)]).unlimited_w;
    assert!((drawn(&known) - drawn(&half)).abs() < 1.0, "{} and {}", drawn(&known), drawn(&half));
}

#[test]
fn a_part_of_the_gpu_has_as_much_of_the_board_s_power_as_of_its_sms() {
    let half: Topology = gpu(2, &[33]);
    let forecast = Slo::default().power(&half, &[throughput_tenant(1, &scaling(6.0))]).unwrap();
    assert!((forecast.limit_w - 130.0 - BUDGET_W / 2.0).abs() < 1e-9);
    assert!(forecast.clock < 1.0 && forecast.board_w == forecast.limit_w);
}

#[test]
fn on_another_board_s_limit_energies_of_the_same_kernels_plan_otherwise() {
    let limited = |limit_w: f64| {
        let board = Board { limit_w, ..BOARD };
        let relimit = |kernel: KernelDemand| {
            let curve = kernel.curve.as_deref().map(|curve| {
                let energy = curve.energy().and_then(|energy| Energy::new(board, energy.points().to_vec()));
                Arc::new(curve.clone().with_energy(energy.map(Arc::new)))
            });
            KernelDemand { curve, ..kernel }
        };
        power(&[throughput_tenant(1, &scaling(6.0).into_iter().map(relimit).collect::<Vec<_>>())])
    };
    let [low, high] = [400.0, 900.0].map(limited);
    assert!(low.clock < high.clock && low.limit_w == 400.0 && high.clock < 1.0 + 1e-9, "{low:?} {high:?}");
}

prop_compose! {
    fn any_request()(
        number in 1_u64..1000, launches in 1_u32..50, us in 20.0_f64..20_000.0, knee in 8.0_f64..132.0,
        flops in 0_u64..5_000_000_000, bytes in 0_u64..50_000_000, watts in prop::option::weighted(0.9, 0.0_f64..8.0),
    ) -> Vec<KernelDemand> {
        let plain = KernelDemand { work: Work { flops, bytes }, ..kernel(number, launches, |sms| us * knee / sms.min(knee)) };
        match watts {
            Some(watts) => drawing(vec![plain], |sms| watts * sms),
            None => vec![plain],
        }
    }
}

prop_compose! {
    /// A tenant that is yet to be given its number.
    fn any_tenant()(
        kernels in prop::collection::vec(any_request(), 1..4), latency in any::<bool>(), slo_us in prop::option::of(500_u64..100_000),
        rate in prop::option::of(1.0_f64..500.0),
    ) -> TenantDemand {
        let kernels = kernels.concat();
        let tenant = if latency { latency_tenant(0, slo_us, &kernels) } else { throughput_tenant(0, &kernels) };
        TenantDemand { rate: rate.filter(|_| latency), ..tenant }
    }
}

fn any_tenants() -> impl Strategy<Value = Vec<TenantDemand>> {
    let numbered =
        |tenants: Vec<TenantDemand>| (1..).zip(tenants).map(|(id, tenant)| TenantDemand { id: TenantId(id), ..tenant }).collect();
    prop::collection::vec(any_tenant(), 1..6).prop_map(numbered)
}

proptest! {
    #[test]
    fn without_energies_and_without_the_budget_plans_and_forecasts_are_the_same(tenants in any_tenants()) {
        let (gpu, bare) = (h200(), without_energy(&tenants));
        prop_assert_eq!(without("no-power").plan(&gpu, &tenants), Slo::default().plan(&gpu, &bare));
        prop_assert_eq!(without("no-power").forecast(&gpu, &tenants), Slo::default().forecast(&gpu, &bare));
        prop_assert_eq!(Slo::default().power(&gpu, &bare), None);
    }

    #[test]
    fn the_limit_makes_nobody_s_forecast_shorter_on_the_same_sms_and_no_latency_tenant_own_less_in_a_pair(
        one in any_request(), other in any_request(), slo_us in 500_u64..100_000,
    ) {
        let tenants = [latency_tenant(1, Some(slo_us), &one), throughput_tenant(2, &other)];
        let (aware, unaware) = (Slo::default().forecast(&h200(), &tenants), without("no-power").forecast(&h200(), &tenants));
        let (with, bare) = (owned(&Slo::default(), &tenants), owned(&without("no-power"), &tenants));
        for (id, forecast) in &aware {
            prop_assert!(forecast.slowdown >= 1.0 && forecast.latency_us.is_finite());
            if with == bare {
                prop_assert!(forecast.slowdown >= unaware[id].slowdown * (1.0 - 1e-9));
            }
        }
        // An objective that is kept at the lower clock is kept with no fewer SMs than at the full one.
        let kept = aware[&TenantId(1)].latency_us <= aware[&TenantId(1)].limit_us.unwrap_or(0.0);
        prop_assert!(!kept || with[0] >= bare[0], "{with:?} and {bare:?}");
    }

    #[test]
    fn of_kernels_that_no_other_room_suits_who_draws_more_is_forecast_to_draw_more_at_a_lower_clock(
        kernels in prop::collection::vec((1_u32..50, 20.0_f64..20_000.0, 0_u64..50_000_000, 0.0_f64..8.0), 1..4), times in 1.0_f64..4.0,
    ) {
        let predicted = |times: f64| {
            let request = kernels.iter().zip(1..).map(|(&(launches, us, bytes, watts), number)| {
                // Slower on every smaller room by more than the tolerance.
                let plain = KernelDemand { work: Work { flops: 0, bytes }, ..kernel(number, launches, |sms| us * 132.0 / sms) };
                drawing(vec![plain], |sms| times * watts * sms)
            });
            power(&[throughput_tenant(1, &request.collect::<Vec<_>>().concat())])
        };
        let (less, more) = (predicted(1.0), predicted(times));
        prop_assert!(more.clock <= less.clock + 1e-9 && more.board_w >= less.board_w - 1e-9, "{less:?} {more:?}");
        prop_assert!((more.unlimited_w - BOARD.idle_w - times * (less.unlimited_w - BOARD.idle_w)).abs() < 1e-6 * more.unlimited_w);
    }

    #[test]
    fn a_forecast_is_of_no_more_than_the_limit_and_of_a_lower_clock_where_that_binds(tenants in any_tenants()) {
        let known = |tenant: &TenantDemand| tenant.kernels.iter().any(|kernel| kernel.curve.as_ref().is_some_and(|curve| curve.energy().is_some()));
        let forecast = Slo::default().power(&h200(), &tenants);
        prop_assert_eq!(forecast.is_some(), tenants.iter().all(known));
        if let Some(PowerForecast { board_w, unlimited_w, limit_w, clock }) = forecast {
            prop_assert!(board_w <= limit_w && board_w >= BOARD.idle_w && limit_w == BOARD.limit_w);
            prop_assert_eq!(clock < 1.0, unlimited_w > limit_w);
        }
    }
}
