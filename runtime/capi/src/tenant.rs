//! What can be changed of a tenant while it and others run, and what a runtime does between requests.

use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::time::Duration;

use ::smidgen_runtime::device::Sms;
use ::smidgen_runtime::tenant::{Class, Share, TenantId};

use crate::arguments::{given, handle, refused};
use crate::runtime::{smidgen_class, smidgen_runtime, smidgen_tenant};
use crate::status::{Failure, guard, smidgen_status};

/// The class that a number stands for in the header.
pub(crate) fn class(number: u32, name: &str) -> Result<Class, Failure> {
    match number {
        class if class == smidgen_class::LATENCY as u32 => Ok(Class::Latency),
        class if class == smidgen_class::THROUGHPUT as u32 => Ok(Class::Throughput),
        unknown => Err(refused(format!("`{name}` is {unknown}, which is no smidgen_class"))),
    }
}

/// A rate that limits nothing where it is 0.
fn limit(bytes_per_second: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes_per_second)
}

/// Stops the tenant from launching and gives its SMs to the others. Its memory and its graphs stay its own, what it has launched runs to its end, and
/// its launches are refused with SMIDGEN_STATUS_STATE until it is resumed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_pause(runtime: *mut smidgen_runtime, tenant: smidgen_tenant) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        Ok(runtime.pause(TenantId(tenant))?)
    })
}

/// Lets a paused tenant launch again. No effect on one that runs. SMIDGEN_STATUS_PARTITION if SMs that it was promised went to others meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_resume(runtime: *mut smidgen_runtime, tenant: smidgen_tenant) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        Ok(runtime.resume(TenantId(tenant))?)
    })
}

/// Gives the tenant another class (a smidgen_class) and another objective, or none where `slo_nanoseconds` is 0, and plans again.
/// SMIDGEN_STATUS_IMPOSSIBLE_SLO if its requests take longer alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_set_objective(
    runtime: *mut smidgen_runtime,
    tenant: smidgen_tenant,
    tenant_class: u32,
    slo_nanoseconds: u64,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        let slo = (slo_nanoseconds > 0).then(|| Duration::from_nanos(slo_nanoseconds));
        Ok(runtime.set_objective(TenantId(tenant), class(tenant_class, "tenant_class")?, slo)?)
    })
}

/// Tells how many requests a second the tenant is to expect, arriving at random, and plans again: its objective then includes their waiting for
/// each other. 0 stands for requests that come one after another.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_expect_rate(
    runtime: *mut smidgen_runtime,
    tenant: smidgen_tenant,
    per_second: f64,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        if !per_second.is_finite() || per_second < 0.0 {
            return Err(refused(format!("`per_second` is {per_second}, which is no rate; 0 stands for none")));
        }
        Ok(runtime.expect_rate(TenantId(tenant), Some(per_second))?)
    })
}

/// Promises the tenant so many SMs, rounded up to whole TPCs, or where `sms` is 0 what the policy gives it, and plans again.
/// SMIDGEN_STATUS_PARTITION, with figures, if so many are not free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_resize(runtime: *mut smidgen_runtime, tenant: smidgen_tenant, sms: u32) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        let share = match sms {
            0 => Share::Planned,
            // No GPU has so many: the runtime refuses it with figures.
            sms => Share::Sms(Sms(u16::try_from(sms).unwrap_or(u16::MAX))),
        };
        Ok(runtime.resize(TenantId(tenant), share)?)
    })
}

/// Lets the policy follow how tenants have fared since the last call, by what smidgen_session_begin_request and smidgen_session_answered told: call it a few
/// times a second, from a thread that serves nobody. `replanned`, where it is not null, says whether there is a new plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_adapt(runtime: *mut smidgen_runtime, replanned: Option<&mut MaybeUninit<bool>>) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        let adapted = runtime.adapt()?;
        replanned.map(|replanned| replanned.write(adapted));
        Ok(())
    })
}

/// Compares the times of kernels since the last call, of which one launch in some hundred is timed, with the profiles, and plans again where they differ by more than
/// 15%, if the policy looks at profiles. Where that plan cannot be made, the old one stays in force, and later ones are made with the profiles as corrected.
/// Call it once a second or so, from a thread that serves nobody. `replanned`, where it is not null, says whether there is a new plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_correct(
    runtime: *mut smidgen_runtime,
    replanned: Option<&mut MaybeUninit<bool>>,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        let report = runtime.correct()?;
        replanned.map(|replanned| replanned.write(report.is_some_and(|report| report.replanned)));
        Ok(())
    })
}

/// Lends the SMs of tenants that have been idle for long enough. Replays, and requests that begin or end, do the same on their way; call it where every
/// thread only waits. `next_nanoseconds` is set to the time of smidgen_device_now at which more will be due, or to UINT64_MAX where nothing will
/// be before another request ends. After SMIDGEN_STATUS_DEVICE they are lent all the same, but a borrower may not have
/// been told, and leaves them idle until its SMs change again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_settle(
    runtime: *mut smidgen_runtime,
    next_nanoseconds: Option<&mut MaybeUninit<u64>>,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        let target = given(next_nanoseconds, "next_nanoseconds")?;
        let next = runtime.settle()?;
        target.write(next.map_or(u64::MAX, |next| u64::try_from(next.as_nanos()).unwrap_or(u64::MAX)));
        Ok(())
    })
}

/// Lets the tenant's transfers (smidgen_session_transfer) carry at most so many bytes a second, or as many as they can where it is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_limit_transfers(
    runtime: *mut smidgen_runtime,
    tenant: smidgen_tenant,
    bytes_per_second: u64,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        Ok(runtime.limit_transfers(TenantId(tenant), limit(bytes_per_second))?)
    })
}

/// The same for the transfers of all throughput tenants together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_limit_throughput_transfers(
    runtime: *mut smidgen_runtime,
    bytes_per_second: u64,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        runtime.transfers().set_throughput_rate(limit(bytes_per_second));
        Ok(())
    })
}
