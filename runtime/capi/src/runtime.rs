//! Runtimes: the tenants of a device, and the policy that plans for them.

use std::ffi::c_char;
use std::mem::{MaybeUninit, size_of};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::smidgen_runtime::device::Priority;
use ::smidgen_runtime::policy;
use ::smidgen_runtime::profile::{Machine, Profile, ProfileStore};
use ::smidgen_runtime::tenant::{TenantId, TenantSpec};
use ::smidgen_runtime::{Runtime, RuntimeOptions};

use crate::arguments::{Sized32, fill, given, hand_out, handle, sized, take_back, text, values};
use crate::device::smidgen_device;
use crate::kernel::smidgen_key;
use crate::status::{Failure, guard, smidgen_status};
use crate::tenant::class;

/// Several tenants on one device, and the plan of who runs where. May be used by all threads at once.
pub struct smidgen_runtime {
    pub(crate) runtime: Arc<Runtime>,
}

/// How a runtime plans.
#[repr(C)]
pub struct smidgen_runtime_options {
    /// sizeof(smidgen_runtime_options), set by the caller.
    pub struct_size: u32,
    /// How many files `profiles` names.
    pub profile_count: u32,
    /// The policy's name, such as "static-equal" or "krisp-i".
    pub policy: *const c_char,
    /// Files of profiles, measured on this GPU by `smidgen profile` or by an engine with the crate smidgen-profiler. A profile of another GPU
    /// is refused; one that was measured under other conditions is used, with a warning to the log.
    pub profiles: *const *const c_char,
    /// The hash of the engine's kernels, to be warned about profiles measured with others; null or empty for no such warning.
    pub kernel_build: *const c_char,
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_runtime_options {
    const NAME: &'static str = "smidgen_runtime_options";
}

/// What a tenant is served for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms)] // The header writes them so.
pub enum smidgen_class {
    /// Each request counts: it has an objective for its latency.
    LATENCY = 0,
    /// Only the sum of finished requests counts.
    THROUGHPUT = 1,
}

/// A tenant's number, never used again in this runtime after it was dismissed.
pub type smidgen_tenant = u32;

/// One model being served, as the engine announces it.
#[repr(C)]
pub struct smidgen_tenant_spec {
    /// sizeof(smidgen_tenant_spec), set by the caller.
    pub struct_size: u32,
    /// A smidgen_class.
    pub tenant_class: u32,
    /// A name for reports.
    pub name: *const c_char,
    /// The latency that requests should keep, nanoseconds; 0 for no objective.
    pub slo_nanoseconds: u64,
    /// Device memory that it will take from smidgen_session_allocate: weights, caches and activations. It is kept for the tenant until it allocates it
    /// there, or is dismissed. Memory from smidgen_device_allocate or from CUDA itself is not seen to be the tenant's, and would count twice, as
    /// taken and as kept: allocate it before the call and leave it out here, 0 where there is no other.
    pub memory_bytes: u64,
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_tenant_spec {
    const NAME: &'static str = "smidgen_tenant_spec";
}

/// How the GPU orders thread blocks that wait for an SM.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms)] // The header writes them so.
pub enum smidgen_priority {
    /// After everybody else.
    LOW = 0,
    /// Between the two.
    NORMAL = 1,
    /// Before everybody else.
    HIGH = 2,
}

/// Where the plan in force places a kernel.
#[repr(C)]
pub struct smidgen_placement {
    /// sizeof(smidgen_placement), set by the caller.
    pub struct_size: u32,
    /// SMs that the kernel is launched for.
    pub sms: u32,
    /// SMs that the tenant's elastic kernels may use in all.
    pub granted_sms: u32,
    /// A smidgen_priority.
    pub priority: u32,
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_placement {
    const NAME: &'static str = "smidgen_placement";
}

/// A runtime without tenants. The partitions that its policy is likely to name are made in the call: a third of a second on an H200.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_create(
    device: *mut smidgen_device,
    options: *const smidgen_runtime_options,
    runtime: Option<&mut MaybeUninit<*mut smidgen_runtime>>,
) -> smidgen_status {
    // SAFETY: the caller's promise is passed on.
    guard(|| hand_out(runtime, "runtime", || unsafe { create(device, options, RuntimeOptions::default()) }))
}

/// The same, with device memory of so many bytes for partitions, 5.8 MB each: a 64th of the GPU's otherwise, 2.2 GB on an H200. Three quarters are for those that are
/// made in the call, and the rest for those of later plans. 0 for none, where all work is for the whole GPU. More than an eighth of the GPU's memory counts as an eighth.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_create_within(
    device: *mut smidgen_device,
    options: *const smidgen_runtime_options,
    partition_bytes: u64,
    runtime: Option<&mut MaybeUninit<*mut smidgen_runtime>>,
) -> smidgen_status {
    let within = RuntimeOptions { partition_bytes: Some(partition_bytes), ..RuntimeOptions::default() };
    // SAFETY: the caller's promise is passed on.
    guard(|| hand_out(runtime, "runtime", || unsafe { create(device, options, within) }))
}

/// # Safety
/// As for [`smidgen_runtime_create`].
unsafe fn create(
    device: *mut smidgen_device,
    options: *const smidgen_runtime_options,
    within: RuntimeOptions,
) -> Result<smidgen_runtime, Failure> {
    // SAFETY: the caller's promise is passed on.
    let device = &unsafe { handle(device, "device") }?.device;
    // SAFETY: the caller's promise is passed on.
    let options = unsafe { sized(options, "options") }?;
    // SAFETY: the caller's promise is passed on.
    let policy = policy::by_name(unsafe { text(options.policy, "options.policy") }?)?;
    let kernel_build = match options.kernel_build.is_null() {
        true => "",
        // SAFETY: the caller's promise is passed on.
        false => unsafe { text(options.kernel_build, "options.kernel_build") }?,
    };
    let machine = Machine::of(&**device, kernel_build);
    let mut store = ProfileStore::default();
    // SAFETY: the caller's promise is passed on.
    let paths = unsafe { values(options.profiles, options.profile_count as usize, "options.profiles") }?;
    for &path in paths {
        // SAFETY: the caller's promise is passed on.
        let path = Path::new(unsafe { text(path, "options.profiles") }?);
        for warning in store.add(path, Profile::read(path)?, &machine)? {
            tracing::warn!("{warning}");
        }
    }
    let runtime = Runtime::with_options(Arc::clone(device), policy, Arc::new(store), within);
    Ok(smidgen_runtime { runtime: Arc::new(runtime) })
}

/// Destroys a runtime and makes `*runtime` null. Its sessions go on under the last plan, and hold the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_destroy(runtime: Option<&mut *mut smidgen_runtime>) -> smidgen_status {
    // SAFETY: the caller's promise is passed on.
    guard(|| unsafe { take_back(runtime, "runtime") }.map(drop))
}

/// Plans by another policy from here on. SMIDGEN_STATUS_UNKNOWN_POLICY for a name that there is not; the message lists those that there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_set_policy(runtime: *mut smidgen_runtime, policy: *const c_char) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        // SAFETY: the caller's promise is passed on.
        let policy = policy::by_name(unsafe { text(policy, "policy") }?)?;
        Ok(runtime.set_policy(policy)?)
    })
}

/// Admits a tenant and plans for it. Its kernels are not known yet: launch one request, then call smidgen_session_learn. Makes partitions, so
/// it takes milliseconds. SMIDGEN_STATUS_NO_MEMORY, with figures, if the tenant does not fit beside the others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_admit(
    runtime: *mut smidgen_runtime,
    spec: *const smidgen_tenant_spec,
    tenant: Option<&mut MaybeUninit<smidgen_tenant>>,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        // SAFETY: the caller's promise is passed on.
        let spec = unsafe { sized(spec, "spec") }?;
        let target = given(tenant, "tenant")?;
        // SAFETY: the caller's promise is passed on.
        let name = unsafe { text(spec.name, "spec.name") }?.to_owned();
        let class = class(spec.tenant_class, "spec.tenant_class")?;
        let slo = (spec.slo_nanoseconds > 0).then(|| Duration::from_nanos(spec.slo_nanoseconds));
        let tenant = runtime.admit(TenantSpec { name, class, slo, memory_bytes: spec.memory_bytes })?;
        target.write(tenant.0);
        Ok(())
    })
}

/// Dismisses a tenant: its SMs go to the others, and its session's next launch is refused with SMIDGEN_STATUS_UNKNOWN_TENANT. What it has
/// launched still runs. Destroy its session afterwards. Where no plan can be made for the others, the status says why, the tenant is gone all the
/// same, and the others keep the SMs they had: nothing has changed only after SMIDGEN_STATUS_NULL and _UNKNOWN_TENANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_dismiss(runtime: *mut smidgen_runtime, tenant: smidgen_tenant) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        Ok(runtime.dismiss(TenantId(tenant))?)
    })
}

/// Says where the plan in force places the tenant's kernel of this key or, where `key` is null, kernels that were not profiled. SMIDGEN_STATUS_STATE of a
/// tenant that is paused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_runtime_placement(
    runtime: *mut smidgen_runtime,
    tenant: smidgen_tenant,
    key: *const smidgen_key,
    placement: *mut smidgen_placement,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let runtime = &unsafe { handle(runtime, "runtime") }?.runtime;
        let find = || {
            let plan = runtime.plan();
            let mine = plan.tenant(TenantId(tenant))?;
            // SAFETY: the caller's promise is passed on.
            let placement = match unsafe { key.as_ref() } {
                // SAFETY: the caller's promise is passed on.
                Some(key) => mine.placement(unsafe { key.read() }?.fingerprint()),
                None => mine.default,
            };
            let priority = match placement.priority {
                Priority::Low => smidgen_priority::LOW,
                Priority::Normal => smidgen_priority::NORMAL,
                Priority::High => smidgen_priority::HIGH,
            };
            Ok(smidgen_placement {
                struct_size: size_of::<smidgen_placement>() as u32,
                sms: placement.sms.get(),
                granted_sms: runtime.device().topology().sms_of(mine.grant).get(),
                priority: priority as u32,
            })
        };
        // SAFETY: the caller's promise is passed on.
        unsafe { fill(placement, "placement", find) }
    })
}
