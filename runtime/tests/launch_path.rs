//! The launch path allocates nothing once warm. Counted on a device that does nothing, so that every allocation is the runtime's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use smidgen_runtime::device::{Device, PartitionId, Priority, Sms};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{Fingerprint, Kernel, LaunchError, OpaqueKernel, Placement, Plan, PlanCell, Session, TenantPlan, Walls};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::tenant::TenantId;

mod support;

use support::Fake;
use support::idle::Idle;

thread_local! {
    /// Of this thread alone: the test harness allocates on others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const KERNELS: [Fake; 4] = [Fake::new("gemm").elastic(), Fake::new("attention").elastic(), Fake::new("norm"), Fake::new("unplanned")];

/// The first three kernels on partitions of their own.
fn plan() -> Plan {
    let placed = |(at, kernel): (u32, &Fake)| {
        let placement = Placement { sms: Sms(8), partition: PartitionId(at), priority: Priority::Normal };
        (kernel.key().fingerprint(), placement)
    };
    let kernels: HashMap<Fingerprint, Placement> = (1..).zip(&KERNELS[..3]).map(placed).collect();
    let tenant = TenantPlan { grant: TpcSet::range(0, 66), default: Placement::whole(Sms(132)), kernels, walls: Walls::default() };
    Plan { policy: "test", tenants: HashMap::from([(TenantId(0), tenant)]), ..Plan::default() }
}

#[test]
fn launches_hops_and_replays_allocate_nothing_once_warm() -> Result<(), LaunchError> {
    let idle = Idle::new();
    let device: Arc<dyn Device> = Arc::clone(&idle) as Arc<dyn Device>;
    let plans = PlanCell::new(plan());
    let mut session = Session::new(&device, &plans, TenantId(0), Arc::new(Grant::new(&device)?))?;
    let opaque = OpaqueKernel { key: KERNELS[0].key(), work: KERNELS[0].work() };
    let request = |session: &mut Session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel));

    assert!(allocations(|| request(&mut session).unwrap()) > 0, "the counter counts");
    let graph = session.capture(request)?;
    let mut rounds = || {
        for _ in 0..1000 {
            request(&mut session).unwrap();
            session.launch_opaque(&opaque, |stream, sms| black_box((stream, sms))).unwrap();
            assert!(session.is_current(&graph).unwrap());
            session.replay(&graph).unwrap();
        }
    };
    assert_eq!(allocations(&mut rounds), 0);
    assert_eq!(idle.launched(), 4 * (1 + 1 + 1000));
    assert!(session.stats().hops >= 4000);

    // A new plan may allocate, at the first launch under it and then no more.
    plans.publish(plan());
    request(&mut session)?;
    let mut rounds = || (0..1000).for_each(|_| request(&mut session).unwrap());
    assert_eq!(allocations(&mut rounds), 0);
    Ok(())
}
