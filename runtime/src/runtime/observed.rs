//! What was seen while tenants were served: kernel times, which correct the profiles that plans are made from, kernels that no profile holds, and the
//! SMs that each tenant has, for its metrics and the timeline.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::device::Sms;
use crate::launch::capture::{GraphBody, GraphKernel};
use crate::launch::{Fingerprint, KernelKey, SeenKernel};
use crate::policy::{Event, GAP_US, KernelDemand, PowerForecast};
use crate::profile::{Corrections, Curve, DriftReport, KernelDrift, PlanDrift, ProfileStore, SHORTEST_JUDGED_US, WINDOW};
use crate::telemetry::ReplaySample;
use crate::tenant::TenantId;

use super::{AdmitError, Runtime, State, shares};

/// Kernels of a tenant that run on the default placement, since nobody has measured them.
#[derive(Debug, Clone, PartialEq)]
pub struct Unprofiled {
    /// The tenant.
    pub tenant: TenantId,
    /// Its name.
    pub name: String,
    /// The kernels, in the order in which its sessions met them.
    pub kernels: Vec<KernelKey>,
}

impl Runtime {
    /// Compares the times of kernels and of replays taken since the last call with the profiles and with the plan. Where kernels differ by more than
    /// [`DRIFT_BOUND`](crate::profile::DRIFT_BOUND) it plans again, with curves corrected by what was seen. Where replays differ by as much from what the plan
    /// expects (the sum of their kernels, and at most the predicted slowdown beside the neighbours more), that is told and changes no plan by itself: it may be the
    /// neighbours, the clock, or the forecast. But the tenant's sessions are asked to launch a few requests in place of replays, at most one in 1000, so that its
    /// kernels are timed, and corrected where they differ ([`Session::replay_or_capture`](crate::launch::Session::replay_or_capture)). Says what differs; nothing
    /// where nothing does. Call it once a second or so, from a thread that is not serving.
    ///
    /// # Errors
    /// What the device says of the events by which kernels are timed. If no plan can be made with the corrected curves, that is the error; the
    /// old plan stays in force, and plans made later are made with the corrected curves: the next change of any tenant tries to, and so does
    /// [`adapt`](Runtime::adapt).
    #[tracing::instrument(level = "debug", skip_all)]
    pub fn correct(&self) -> Result<Option<DriftReport>, AdmitError> {
        self.device.bind_thread()?;
        let samples = self.telemetry.take_samples()?;
        let state = &mut *self.state.lock();
        let is_predicted = !samples.replays.is_empty() || samples.launches.iter().any(|sample| sample.replaces_replay);
        let slowdowns = if is_predicted { self.slowdowns(state)? } else { BTreeMap::new() };
        for sample in samples.launches {
            // A kernel that may not use all the SMs it was sized for takes longer, and is no slower for it.
            if self.holds(state, sample.tenant, sample.sms) != Some(false)
                && let Some(curve) = state.profiles.curve(sample.kernel)
            {
                // As the replays that asked for it: what the plan expects of neighbours is no part of what was found, and the policy would add it once more.
                let slowdown = slowdowns.get(&sample.tenant).filter(|_| sample.replaces_replay);
                let measured = sample.took.as_secs_f64() * 1e6;
                let expected = expected_us(measured, curve.at(sample.sms), slowdown.copied().unwrap_or(1.0));
                state.corrections.add(sample.kernel, measured, expected);
            }
        }
        let moved = state.corrections.review();
        let drift = |(kernel, ratio)| Some(KernelDrift { kernel: self.telemetry.key(kernel)?, ratio });
        let kernels: Vec<_> = moved.into_iter().filter_map(drift).collect();
        let tenants = self.judge_replays(state, &samples.replays, &slowdowns);
        self.ask_for_samples(state, &tenants);
        if kernels.is_empty() && tenants.is_empty() {
            return Ok(None);
        }
        self.telemetry.drift_reported();
        kernels.iter().for_each(|drift| self.telemetry.drifted(&drift.kernel, drift.ratio));
        tenants.iter().for_each(|drift| self.telemetry.plan_drifted(drift.tenant, drift.ratio));
        let Some(worst) = kernels.first() else { return Ok(Some(DriftReport { kernels, tenants, replanned: false })) };
        tracing::warn!(
            "{} kernels differ from their profile by more than {:.0}%, {} most: it takes {:.2} times as long; profile again on this machine",
            kernels.len(),
            crate::profile::DRIFT_BOUND * 100.0,
            worst.kernel,
            worst.ratio
        );
        let replanned = state.policy.needs_profiles();
        state.correct_demands();
        if replanned {
            state.take_in(Event::Changed);
            self.replan_in_any_case(state)?;
        }
        Ok(Some(DriftReport { kernels, tenants, replanned }))
    }

    /// Whether a tenant may use so many SMs now; none of an unknown one.
    fn holds(&self, state: &State, tenant: TenantId, sms: Sms) -> Option<bool> {
        let admitted = state.tenants.get(&tenant)?;
        Some(self.device.topology().sms_of(admitted.membership.grant().held()) >= sms)
    }

    /// By tenant, how many times longer than undisturbed its requests are predicted to take.
    fn slowdowns(&self, state: &State) -> Result<BTreeMap<TenantId, f64>, AdmitError> {
        let topology = self.device.topology();
        let regions = state.regions(topology)?.into_iter();
        Ok(regions.flat_map(|(region, demands)| shares::slowdowns_in(&*state.policy, topology, region, &demands)).collect())
    }

    /// What the board is predicted to draw while all tenants that run work, by the plan that the policy makes of them now. None where it is not known of each of them, and
    /// where one has a share of the GPU: what is outside of its region is planned for as a board of its own.
    pub fn predicted_power(&self) -> Option<PowerForecast> {
        let (state, topology) = (self.state.lock(), self.device.topology());
        let regions = state.regions(topology).ok()?;
        let [(region, demands)] = &regions[..] else { return None };
        (*region == topology.all_tpcs()).then(|| state.policy.power(topology, demands)).flatten()
    }

    /// The tenants whose replays have come to differ from what the plan expects of them.
    fn judge_replays(&self, state: &mut State, replays: &[ReplaySample], slowdowns: &BTreeMap<TenantId, f64>) -> Vec<PlanDrift> {
        if replays.is_empty() {
            return Vec::new();
        }
        for replay in replays {
            let widest = replay.graph.kernels.iter().map(|launched| launched.sms).max().unwrap_or_default();
            let (Some(undisturbed), Some(slowdown), Some(true)) =
                (state.replay_us(&replay.graph), slowdowns.get(&replay.tenant), self.holds(state, replay.tenant, widest))
            else {
                continue;
            };
            let measured = replay.took.as_secs_f64() * 1e6;
            state.plan_drift.add(replay.tenant, measured, expected_us(measured, undisturbed, *slowdown));
        }
        let drifted: Vec<_> = state.plan_drift.review().into_iter().map(|(tenant, ratio)| PlanDrift { tenant, ratio }).collect();
        for drift in &drifted {
            let name = state.tenants.get(&drift.tenant).map_or("", |admitted| admitted.spec.name.as_str());
            tracing::warn!(
                "requests of `{name}` take {:.2} times as long as the plan expects, beside the neighbours that it has",
                drift.ratio
            );
        }
        drifted
    }

    /// Has the tenants whose replays were `found` to differ launch requests, until each kernel that can be judged has been timed as often since then as a drift
    /// looks back: what was sampled before may say nothing of it.
    fn ask_for_samples(&self, state: &mut State, found: &[PlanDrift]) {
        for drift in found.iter().filter(|drift| drift.is_out_of_bounds()) {
            if let Some(admitted) = state.tenants.get(&drift.tenant) {
                let enough = |kernel: &KernelDemand| (kernel.kernel, state.corrections.taken(kernel.kernel) + WINDOW);
                let until = admitted.kernels.iter().map(enough).collect();
                state.asked.insert(drift.tenant, until);
                self.telemetry.ask_for_launches(drift.tenant);
            }
        }
        let State { asked, corrections, profiles, .. } = state;
        let plan = self.plans.current();
        asked.retain(|&tenant, until| {
            let Some(mine) = plan.tenants.get(&tenant) else { return true };
            let is_judged = |kernel| profiles.curve(kernel).is_some_and(|curve| curve.at(mine.placement(kernel).sms) >= SHORTEST_JUDGED_US);
            let wanted = until.iter().filter(|&(&kernel, &enough)| corrections.taken(kernel) < enough && is_judged(kernel));
            self.telemetry.want_times(tenant, wanted.map(|(&kernel, _)| kernel).collect())
        });
    }

    /// Tells the policy how tenants have fared since the last call, and plans again where that calls for it: a latency tenant that misses its SLO is planned
    /// for with more to spare and one that keeps it easily with less, a throughput tenant without work gives its SMs up, and nobody is planned for on the SMs of a
    /// latency tenant that never pauses ([`Replanner`](crate::policy::Replanner)). Whether there is a
    /// new plan. Call it a few times a second, from a thread that is not serving; it knows what engines tell
    /// [`RequestLog`](crate::telemetry::RequestLog)s.
    ///
    /// Where no such plan can be made, it is made without the margins, the idleness and the restlessness that this call would have changed, which wait.
    ///
    /// # Errors
    /// If not even that plan can be made; the old one stays in force, and the next call tries again. So it does after a [`dismiss`](Runtime::dismiss) or a
    /// [`correct`](Runtime::correct) that failed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub fn adapt(&self) -> Result<bool, AdmitError> {
        let mut observed = self.telemetry.take_observations();
        let state = &mut *self.state.lock();
        let ample = self.ample(state);
        for seen in &mut observed {
            if let Some(admitted) = state.tenants.get(&seen.tenant) {
                (seen.rested, seen.paused) = (admitted.membership.take_rest(), admitted.paused);
                seen.ample = ample.contains(&seen.tenant);
            }
        }
        if !state.take_in(Event::Window(&observed)) && !state.stale {
            return Ok(false);
        }
        let adapted = self.replan_if_other(state).or_else(|error| {
            if !state.take_in(Event::Unplannable) {
                return Err(error);
            }
            tracing::warn!("no plan can be made that follows how tenants fare, and one is made that waits with that: {error}");
            self.replan_if_other(state)
        });
        adapted.inspect_err(|_| state.stale = true)
    }

    /// The tenants that own more than their margins ask for.
    fn ample(&self, state: &State) -> BTreeSet<TenantId> {
        let topology = self.device.topology();
        // Where there are no regions no plan can be made either, and no margin moves by it.
        let regions = state.regions(topology).unwrap_or_default().into_iter();
        regions.flat_map(|(region, demands)| shares::ample_in(&*state.policy, topology, region, &demands)).collect()
    }

    /// Puts in force what the policy drafts, if it differs from the plan that is, or that is stale. Whether it differs.
    fn replan_if_other(&self, state: &mut State) -> Result<bool, AdmitError> {
        let (plan, partitions) = self.make_plan(state)?;
        // A step of a margin may move nothing: whole TPCs change hands.
        let is_other = plan != *self.plans.current();
        if is_other || state.stale {
            self.put_in_force(state, plan, partitions)?;
        }
        Ok(is_other)
    }

    /// Plans with other profiles from here on, such as those of kernels that were [queued](Runtime::unprofiled). What was seen against the earlier ones says nothing of
    /// these, and is forgotten. Sessions that are there already go on launching kernels in the [configurations](crate::launch::Kernel::configurations) that the earlier profiles name.
    ///
    /// # Errors
    /// If no plan can be made with them: the old plan stays in force, and plans made later are made with these profiles, as after [`correct`](Runtime::correct).
    #[tracing::instrument(level = "debug", skip_all)]
    pub fn set_profiles(&self, profiles: Arc<ProfileStore>) -> Result<(), AdmitError> {
        let state = &mut *self.state.lock();
        state.profiles = profiles;
        state.corrections = Corrections::default();
        state.plan_drift = Corrections::of_replays();
        for tenant in std::mem::take(&mut state.asked).into_keys() {
            self.telemetry.want_times(tenant, Vec::new());
        }
        state.correct_demands();
        if state.policy.needs_profiles() {
            state.take_in(Event::Changed);
            self.replan_in_any_case(state)?;
        }
        Ok(())
    }

    /// The queue of kernels that no profile holds, by tenant: they run on the default placement until somebody profiles them, as `smidgen_profiler::profile_queued`
    /// does from a recorded request, and hands the profile to [`set_profiles`](Runtime::set_profiles). Tenants whose kernels all have profiles are left out.
    pub fn unprofiled(&self) -> Vec<Unprofiled> {
        let state = self.state.lock();
        let unprofiled = state.tenants.iter().map(|(&tenant, admitted)| {
            let met = self.telemetry.met(tenant).into_iter();
            let kernels = met.filter(|key| state.profiles.curve(key.fingerprint()).is_none()).collect();
            Unprofiled { tenant, name: admitted.spec.name.clone(), kernels }
        });
        unprofiled.filter(|tenant| !tenant.kernels.is_empty()).collect()
    }

    /// Brings the metrics of all tenants up to date, for whoever is about to read them.
    pub fn publish_metrics(&self) {
        let state = self.state.lock();
        for (&tenant, admitted) in &state.tenants {
            let [owned, held, borrowed] = self.lending.sms(&admitted.membership);
            self.telemetry.publish(tenant, owned, held, borrowed, admitted.memory());
        }
    }
}

/// What is expected of something that took `measured`. Neighbours need not all work: anything between none of them and all is as expected.
fn expected_us(measured: f64, undisturbed: f64, slowdown: f64) -> f64 {
    measured.min(undisturbed * slowdown).max(undisturbed)
}

impl State {
    pub(super) fn kernel_demand(&self, seen: &SeenKernel) -> KernelDemand {
        let kernel = seen.key.fingerprint();
        KernelDemand { kernel, launches: seen.launches, work: seen.work, curve: self.curve(kernel) }
    }

    /// What a replay takes undisturbed, by the profiles as corrected; none if something in it has no profile.
    fn replay_us(&self, graph: &GraphBody) -> Option<f64> {
        let launched: u64 = graph.kernels.iter().map(|launched| u64::from(launched.launches)).sum();
        let us = |launched: &GraphKernel| Some(f64::from(launched.launches) * (self.curve(launched.kernel)?.at(launched.sms) + GAP_US));
        let kernels = graph.kernels.iter().map(us).sum::<Option<f64>>()?;
        (launched == graph.launches).then_some(kernels)
    }

    /// The kernel's profile, corrected by what was seen.
    fn curve(&self, kernel: Fingerprint) -> Option<Arc<Curve>> {
        let (curve, factor) = (self.profiles.curve(kernel)?, self.corrections.factor(kernel));
        Some(if factor == 1.0 { curve } else { Arc::new(curve.scaled(factor)) })
    }

    /// Gives all tenants' kernels the curves that count now.
    fn correct_demands(&mut self) {
        let mut tenants = std::mem::take(&mut self.tenants);
        for kernel in tenants.values_mut().flat_map(|admitted| &mut admitted.kernels) {
            kernel.curve = self.curve(kernel.kernel);
        }
        self.tenants = tenants;
    }
}
