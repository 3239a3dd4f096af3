//! What can be done with a tenant while it and others run.
//!
//! | state   | in the plan | launches | leaves by |
//! |---------|-------------|----------|-----------|
//! | running | yes | run | `pause`, `dismiss` |
//! | paused  | no; its SMs are the others' | [`LaunchError::Paused`]; what was launched before runs to its end | `resume`, `dismiss` |
//! | gone    | no; its SMs are the others' | [`LaunchError::Dismissed`] | never: numbers are not used again |
//!
//! No change touches memory or another tenant's work: weights stay where they are, sessions follow the new plan at their next launch.

use std::num::NonZeroU64;
use std::ops::Deref;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::device::{Device, Sms, Topology};
use crate::launch::lending::{Membership, Requests};
use crate::launch::{Plan, SeenKernel, Session};
use crate::partition::TpcSet;
use crate::policy::{Event, KernelDemand, TenantDemand};
use crate::profile::ProfileStore;
use crate::telemetry::Memory;
use crate::tenant::{Class, Share, TenantId, TenantSpec};
use crate::transfer::Uploader;

use super::watched::{Account, Watched};
use super::{AdmitError, MemoryHolder, Runtime, State, shares};

/// A tenant as the runtime keeps it.
#[derive(Clone)]
pub(super) struct Admitted {
    pub(super) spec: TenantSpec,
    pub(super) membership: Arc<Membership>,
    pub(super) paused: bool,
    /// TPCs that it was promised.
    pub(super) share: Option<u16>,
    /// Those TPCs, while it runs.
    pub(super) region: TpcSet,
    pub(super) kernels: Vec<KernelDemand>,
    /// Requests a second that it was said to expect.
    rate: Option<f64>,
    account: Arc<Account>,
    /// The device as its sessions see it.
    device: Arc<dyn Device>,
}

/// A tenant as [`Runtime::tenants`] shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantStatus {
    /// Its number.
    pub id: TenantId,
    /// What it was admitted as, with the class and the objective it has now.
    pub spec: TenantSpec,
    /// Whether it is paused.
    pub paused: bool,
    /// SMs that it was promised; none where the policy decides.
    pub share: Option<Sms>,
    /// The TPCs that its elastic kernels may use under the plan in force; none while it is paused.
    pub grant: TpcSet,
    /// Bytes of device memory that its sessions hold, captured graphs among them.
    pub allocated_bytes: u64,
    /// Those of them that the driver took for captured graphs, as far as the device can tell ([`Device::graph_bytes`]).
    pub graph_bytes: u64,
}

impl Runtime {
    /// Admits a tenant and plans for it. Its kernels are not known yet: run one request, then [`learn`](Runtime::learn) them.
    ///
    /// # Errors
    /// [`AdmitError::NoMemory`] with figures if it does not fit beside what the others were promised or hold, or if less is free;
    /// [`AdmitError::NoSms`] where every SM is in somebody's share; [`AdmitError::ZeroSlo`]; what a plan or the device says. Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = spec.name))]
    pub fn admit(&self, spec: TenantSpec) -> Result<TenantId, AdmitError> {
        if spec.slo == Some(Duration::ZERO) {
            return Err(AdmitError::ZeroSlo { name: spec.name });
        }
        let mut state = self.state.lock();
        let holders: Vec<_> = state.tenants.values().map(Admitted::holder).chain(MemoryHolder::partitions(&self.ladder)).collect();
        // What was promised and is not allocated yet is free by the device's count.
        let free = holders.iter().map(MemoryHolder::outstanding).fold(self.device.free_bytes()?, u64::saturating_sub);
        if spec.memory_bytes > free {
            return Err(AdmitError::NoMemory { name: spec.name, needed: spec.memory_bytes, free, holders });
        }
        let account = Arc::<Account>::default();
        let device = Watched::new(Arc::clone(&self.bare), Arc::clone(&self.loss), format!("tenant `{}`", spec.name), Arc::clone(&account));
        let id = TenantId(state.next);
        let membership = self.lending.admit(id)?.ok_or(AdmitError::TooMany)?;
        let (paused, share, region, kernels, rate) = (false, None, TpcSet::EMPTY, Vec::new(), None);
        state.next += 1;
        state.take_in(Event::Admitted(id, spec.class, spec.slo));
        state.tenants.insert(
            id,
            Admitted { spec: spec.clone(), membership: Arc::clone(&membership), paused, share, region, kernels, rate, account, device },
        );
        self.replan(&mut state).inspect_err(|_| {
            state.tenants.remove(&id);
            state.take_in(Event::Dismissed(id));
            self.lending.dismiss(&membership);
        })?;
        self.telemetry.admitted(id, &spec);
        Ok(id)
    }

    /// A session for an admitted tenant. What it allocates, and whatever is allocated through [`Session::device`], counts as the tenant's.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed; [`LaunchError::Paused`](crate::launch::LaunchError::Paused) while it is paused.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn session(&self, tenant: TenantId) -> Result<Session, AdmitError> {
        let (device, membership, profiles) = {
            let state = self.state.lock();
            let admitted = state.tenant(tenant)?;
            (Arc::clone(&admitted.device), Arc::clone(&admitted.membership), Arc::clone(&state.profiles))
        };
        let session = Session::new(&device, &self.plans, tenant, Arc::clone(membership.grant()))?;
        Ok(session.tuned(profiles).observed(self.telemetry.probe(tenant)?).announcing(Requests::new(&self.lending, &membership)))
    }

    /// What copies a tenant's inputs to the device, in turn with everybody else's.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed; what the device says.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn uploader(&self, tenant: TenantId) -> Result<Uploader, AdmitError> {
        let state = self.state.lock();
        let admitted = state.tenant(tenant)?;
        Ok(Uploader::new(&self.transfers, &admitted.device, tenant, admitted.spec.class)?)
    }

    /// Lets the tenant's uploaders copy at most so many bytes per second, or as many as they can. A pause saves up for
    /// [`TransferConfig::in_flight`](crate::transfer::TransferConfig::in_flight) chunks at most. An upload that goes at once is not held up any more.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn limit_transfers(&self, tenant: TenantId, bytes_per_second: Option<NonZeroU64>) -> Result<(), AdmitError> {
        let state = self.state.lock();
        state.tenant(tenant)?;
        self.transfers.set_rate(tenant, bytes_per_second);
        Ok(())
    }

    /// Tells which kernels one request of the tenant launches, and plans again. Telling what is known already makes no plan, unless the last
    /// [`dismiss`](Runtime::dismiss), [`correct`](Runtime::correct) or [`adapt`](Runtime::adapt) could make none: then it tries that again.
    ///
    /// # Errors
    /// [`AdmitError::ImpossibleSlo`] if the kernels' best latencies add up to more than a latency tenant's objective; [`AdmitError::Unknown`] after it was
    /// dismissed; what a plan or the device says. Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0, kernels = request.len()))]
    pub fn learn(&self, tenant: TenantId, request: &[SeenKernel]) -> Result<(), AdmitError> {
        let launched = || request.iter().filter(|seen| seen.launches > 0);
        let mut state = self.state.lock();
        self.change(&mut state, tenant, |state, admitted| {
            admitted.kernels = launched().map(|seen| state.kernel_demand(seen)).collect();
            admitted.check_objective(&state.profiles)
        })?;
        self.telemetry.learned(tenant, launched().map(|seen| seen.key));
        Ok(())
    }

    /// Gives the tenant another class, and another objective or none, and plans again. Those that it has already make no plan but where
    /// [`learn`](Runtime::learn) says so.
    ///
    /// # Errors
    /// As [`learn`](Runtime::learn).
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn set_objective(&self, tenant: TenantId, class: Class, slo: Option<Duration>) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        self.change(&mut state, tenant, |state, admitted| {
            (admitted.spec.class, admitted.spec.slo) = (class, slo);
            admitted.check_objective(&state.profiles)
        })?;
        self.transfers.set_class(tenant, class);
        self.telemetry.objective_changed(tenant, slo);
        Ok(())
    }

    /// Tells how many requests a second the tenant is to expect, arriving at random, and plans again: its objective then includes their waiting for each
    /// other. `None`, the default, stands for requests that come one after another. Rates that are no positive number count as `None`. A rate that is known
    /// already makes no plan but where [`learn`](Runtime::learn) says so.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed; what a plan or the device says. Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn expect_rate(&self, tenant: TenantId, per_second: Option<f64>) -> Result<(), AdmitError> {
        self.change(&mut self.state.lock(), tenant, |_, admitted| {
            admitted.rate = per_second.filter(|rate| rate.is_finite() && *rate > 0.0);
            Ok(())
        })
    }

    /// Promises the tenant a number of SMs, or lets the policy decide again, and plans again. What it gains or loses counts from its next launch; elastic
    /// kernels in flight leave SMs that went to others at their next tile. Other tenants with a share keep the very SMs they have. The share that it has already
    /// makes no plan but where [`learn`](Runtime::learn) says so.
    ///
    /// # Errors
    /// [`AdmitError::NoSms`] with figures if so many are not free, or if none would be left for running tenants without a share; what a plan or the device
    /// says. Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0, ?share))]
    pub fn resize(&self, tenant: TenantId, share: Share) -> Result<(), AdmitError> {
        let topology = self.device.topology();
        let asked = match share {
            Share::Planned => None,
            Share::Sms(sms) => Some(sms),
            Share::Percent(percent) => Some(Sms((topology.sms.get() * u32::from(percent)).div_ceil(100).min(u32::from(u16::MAX)) as u16)),
        };
        let tpcs = asked.map(|sms| topology.tpcs_for(sms).max(1));
        self.change(&mut self.state.lock(), tenant, |state, admitted| {
            admitted.share = tpcs;
            match tpcs.filter(|&tpcs| tpcs > topology.tpcs()) {
                Some(tpcs) if admitted.paused => Err(admitted.too_many(tpcs, topology.all_tpcs(), 0, topology)),
                None if admitted.paused => Ok(()),
                _ => self.place_region(state, tenant, admitted),
            }
        })
    }

    /// Stops the tenant from launching and gives its SMs to the others. Nothing is unloaded: its memory stays its own, captured graphs stay valid, and what
    /// it has launched runs to its end.
    ///
    /// Launches are refused and do not wait, because a thread that waits inside a launch could serve nobody, nor notice that its tenant was dismissed.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed; what the others' plan or the device says. Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn pause(&self, tenant: TenantId) -> Result<(), AdmitError> {
        self.change(&mut self.state.lock(), tenant, |_, admitted| {
            (admitted.paused, admitted.region) = (true, TpcSet::EMPTY);
            Ok(())
        })
    }

    /// Lets a paused tenant launch again. No effect on one that runs.
    ///
    /// # Errors
    /// [`AdmitError::NoSms`] if its share was promised to others meanwhile; what a plan or the device says. It stays paused then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn resume(&self, tenant: TenantId) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        if !state.tenant(tenant)?.paused {
            return Ok(());
        }
        self.change(&mut state, tenant, |state, admitted| {
            admitted.paused = false;
            self.place_region(state, tenant, admitted)
        })
    }

    /// Removes a tenant from the plan; its SMs go to the others, and its session's next launch is refused.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it is gone already. If no plan can be made for the others, the error says why; the tenant is gone all the same, and the
    /// others keep the SMs they had until one can be: the next change of any tenant tries again, and so does [`adapt`](Runtime::adapt).
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn dismiss(&self, tenant: TenantId) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        let gone = state.tenants.remove(&tenant).ok_or(AdmitError::Unknown(tenant))?;
        self.lending.dismiss(&gone.membership);
        self.lending.note(&gone.membership);
        self.transfers.forget(tenant);
        self.telemetry.dismissed(tenant);
        state.plan_drift.forget(tenant);
        state.asked.remove(&tenant);
        state.take_in(Event::Dismissed(tenant));
        self.replan_in_any_case(&mut state).inspect_err(|_| {
            let mut others = Plan::clone(&self.plans.current());
            others.tenants.remove(&tenant);
            others.paused.remove(&tenant);
            self.plans.publish(others);
        })
    }

    /// Grants a tenant exactly `tpcs` until the next plan says otherwise: its elastic kernels, those in flight and those in captured graphs
    /// included, leave other SMs at their next tile. Placements stay as planned. This does not wait for the kernels;
    /// one that starts before a larger grant has arrived, some microseconds later, ends on the SMs of the old one.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it was dismissed; [`DeviceError::BadPartition`](crate::device::DeviceError::BadPartition) for TPCs that the GPU lacks.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn set_grant(&self, tenant: TenantId, tpcs: TpcSet) -> Result<(), AdmitError> {
        let state = self.state.lock();
        let admitted = state.tenant(tenant)?;
        self.lending.grant_by_hand(&admitted.membership, tpcs)?;
        self.lending.note(&admitted.membership);
        Ok(())
    }

    /// Every tenant, in the order of admission.
    pub fn tenants(&self) -> Vec<TenantStatus> {
        let (state, plan) = (self.state.lock(), self.plans.current());
        let status = |(&id, admitted): (&TenantId, &Admitted)| TenantStatus {
            id,
            spec: admitted.spec.clone(),
            paused: admitted.paused,
            share: admitted.share.map(|tpcs| self.device.topology().sms_of(TpcSet::range(0, tpcs))),
            grant: plan.tenants.get(&id).map_or(TpcSet::EMPTY, |mine| mine.grant),
            allocated_bytes: admitted.account.bytes(),
            graph_bytes: admitted.account.graph_bytes(),
        };
        state.tenants.iter().map(status).collect()
    }

    /// Changes a copy of a tenant and plans with it, if that makes a difference or the plan in force is stale; the tenant is as before if either fails.
    fn change(
        &self,
        state: &mut State,
        tenant: TenantId,
        change: impl FnOnce(&State, &mut Admitted) -> Result<(), AdmitError>,
    ) -> Result<(), AdmitError> {
        let before = state.tenant(tenant)?;
        let mut changed = before.clone();
        change(state, &mut changed)?;
        let is_resized = before.share != changed.share;
        let (was, is) = (before.demand(tenant), changed.demand(tenant));
        let differs = was != is || (before.paused, before.share, before.region) != (changed.paused, changed.share, changed.region);
        if !differs && !state.stale {
            return Ok(());
        }
        let replanner = state.replanner.clone();
        // What was learned of it holds at another rate and on other SMs. Otherwise it was learned of another tenant, as it were.
        if (was.class, was.slo, was.kernels) != (is.class, is.slo, is.kernels) {
            state.take_in(Event::Admitted(tenant, is.class, is.slo));
        } else if differs {
            state.take_in(if is_resized { Event::Resized(tenant) } else { Event::Changed });
        }
        let before = state.tenants.insert(tenant, changed);
        self.replan(state).inspect_err(|_| {
            if let Some(before) = before {
                state.tenants.insert(tenant, before);
            }
            state.policy.adjust(replanner.adjustments());
            state.replanner = replanner;
        })?;
        self.make_foreseen_partitions(state);
        Ok(())
    }

    /// Gives a tenant with a share its TPCs, and one without none of its own.
    fn place_region(&self, state: &State, tenant: TenantId, admitted: &mut Admitted) -> Result<(), AdmitError> {
        let topology = self.device.topology();
        let Some(tpcs) = admitted.share else {
            admitted.region = TpcSet::EMPTY;
            return Ok(());
        };
        let others = || state.tenants.iter().filter(|(id, other)| **id != tenant && !other.paused).map(|(_, other)| other);
        let free = others().fold(topology.all_tpcs(), |free, other| free - other.region);
        let unshared = others().filter(|other| other.share.is_none()).count();
        let most = free.len().saturating_sub(u16::from(unshared > 0));
        let region = shares::resized(admitted.region, free, tpcs).filter(|_| tpcs <= most);
        admitted.region = region.ok_or_else(|| admitted.too_many(tpcs, free, unshared, topology))?;
        Ok(())
    }
}

impl State {
    pub(super) fn tenant(&self, tenant: TenantId) -> Result<&Admitted, AdmitError> {
        self.tenants.get(&tenant).ok_or(AdmitError::Unknown(tenant))
    }
}

impl Admitted {
    pub(super) fn demand(&self, id: TenantId) -> TenantDemand {
        TenantDemand { id, class: self.spec.class, slo: self.spec.slo, rate: self.rate, kernels: self.kernels.clone() }
    }

    pub(super) fn memory(&self) -> Memory {
        let (allocated, graphs) = (self.account.bytes(), self.account.graph_bytes());
        Memory { promised: self.spec.memory_bytes, allocated, graphs }
    }

    fn holder(&self) -> MemoryHolder {
        MemoryHolder { name: self.spec.name.clone(), promised: self.spec.memory_bytes, allocated: self.account.bytes() }
    }

    /// That `tpcs` of `free` cannot be its share.
    fn too_many(&self, tpcs: u16, free: TpcSet, unshared: usize, topology: &Topology) -> AdmitError {
        let asked = Sms(tpcs.saturating_mul(topology.sms_per_tpc));
        AdmitError::NoSms { name: self.spec.name.clone(), asked, free: topology.sms_of(free), unshared }
    }

    /// Against the profiles as they are: what corrects them may be the neighbours' doing.
    fn check_objective(&self, profiles: &ProfileStore) -> Result<(), AdmitError> {
        let Some(slo) = self.spec.slo else { return Ok(()) };
        if slo.is_zero() {
            return Err(AdmitError::ZeroSlo { name: self.spec.name.clone() });
        }
        if self.spec.class == Class::Throughput {
            return Ok(());
        }
        let best = |kernel: &KernelDemand| profiles.curve(kernel.kernel).map_or(0.0, |curve| curve.best()) * f64::from(kernel.launches);
        let isolated = self.kernels.iter().map(best).sum::<f64>() / 1e6;
        let isolated = Duration::try_from_secs_f64(isolated).unwrap_or(Duration::MAX);
        if slo < isolated {
            return Err(AdmitError::ImpossibleSlo { name: self.spec.name.clone(), slo, isolated });
        }
        Ok(())
    }
}

/// Dismisses its tenant when dropped. Whoever serves a tenant on a thread of its own keeps one there, so that however the thread ends, by its last request, an
/// error or a panic, the tenant's SMs go to the others, and nobody else is touched.
///
/// `R` is `&Runtime` or `Arc<Runtime>`.
pub struct Tenancy<R: Deref<Target = Runtime>> {
    runtime: R,
    tenant: TenantId,
}

impl<R: Deref<Target = Runtime>> Tenancy<R> {
    /// From here on `tenant` is admitted for as long as this value lives.
    pub fn new(runtime: R, tenant: TenantId) -> Self {
        Self { runtime, tenant }
    }

    /// Whose it is.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}

impl<R: Deref<Target = Runtime>> Drop for Tenancy<R> {
    fn drop(&mut self) {
        let tenant = self.tenant.0;
        if thread::panicking() {
            tracing::error!(tenant, "dismissed because its thread panicked");
        }
        match self.runtime.dismiss(self.tenant) {
            // Gone already is as good.
            Ok(()) | Err(AdmitError::Unknown(_)) => {}
            Err(error) => tracing::warn!(tenant, %error, "dismissed; the others keep the SMs they had"),
        }
    }
}
