//! The launch path allocates nothing once warm. Counted on a device that does nothing, so that every allocation is the runtime's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{
    Device, DeviceError, DevicePtr, EventId, FunctionId, GraphId, LaunchRequest, PartitionId, Priority, Sms, StreamId, Topology,
};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{Fingerprint, Kernel, LaunchError, OpaqueKernel, Placement, Plan, PlanCell, Session, TenantPlan, Walls};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::tenant::TenantId;

mod support;

use support::Fake;

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

/// A device that numbers what it is asked for and does nothing else.
struct Idle {
    topology: Topology,
    next: AtomicU64,
    launched: AtomicU64,
}

impl Idle {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Device for Idle {
    fn topology(&self) -> &Topology {
        &self.topology
    }
    fn is_simulated(&self) -> bool {
        true
    }
    fn bind_thread(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.topology.memory_bytes)
    }
    fn allocate(&self, _: u64) -> Result<DevicePtr, DeviceError> {
        Ok(DevicePtr(self.number() << 20))
    }
    fn free(&self, _: DevicePtr) {}
    fn upload(&self, _: StreamId, _: DevicePtr, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn download(&self, _: StreamId, _: DevicePtr, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn fill(&self, _: StreamId, _: DevicePtr, _: u8, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }
    fn load(&self, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn function(&self, _: &'static str) -> Result<FunctionId, DeviceError> {
        Ok(FunctionId(self.number()))
    }
    fn create_partition(&self, _: TpcSet) -> Result<PartitionId, DeviceError> {
        Ok(PartitionId(self.number() as u32))
    }
    fn partition_sms(&self, _: PartitionId) -> Result<Sms, DeviceError> {
        Ok(self.topology.sms)
    }
    fn sm_mask(&self, _: TpcSet) -> Result<[u32; 8], DeviceError> {
        Ok([0; 8])
    }
    fn create_stream(&self, _: PartitionId, _: Priority) -> Result<StreamId, DeviceError> {
        Ok(StreamId(self.number()))
    }
    fn destroy_stream(&self, _: StreamId) {}
    fn launch(&self, _: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError> {
        black_box(request);
        self.launched.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn create_event(&self) -> Result<EventId, DeviceError> {
        Ok(EventId(self.number()))
    }
    fn destroy_event(&self, _: EventId) {}
    fn record(&self, _: EventId, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn wait(&self, _: StreamId, _: EventId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn query(&self, _: EventId) -> Result<bool, DeviceError> {
        Ok(true)
    }
    fn elapsed(&self, _: EventId, _: EventId) -> Result<Duration, DeviceError> {
        Ok(Duration::ZERO)
    }
    fn synchronize(&self, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn begin_capture(&self, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn end_capture(&self, _: StreamId) -> Result<GraphId, DeviceError> {
        Ok(GraphId(self.number()))
    }
    fn replay(&self, _: GraphId, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn destroy_graph(&self, _: GraphId) {}
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn pass_time(&self, _: Duration) {}
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
    Plan { policy: "test", tenants: HashMap::from([(TenantId(0), tenant)]) }
}

#[test]
fn launches_hops_and_replays_allocate_nothing_once_warm() -> Result<(), LaunchError> {
    let idle = Arc::new(Idle { topology: SimConfig::h200().topology, next: AtomicU64::new(1), launched: AtomicU64::new(0) });
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
    assert_eq!(idle.launched.load(Ordering::Relaxed), 4 * (1 + 1 + 1000));
    assert!(session.stats().hops >= 4000);

    // A new plan may allocate, at the first launch under it and then no more.
    plans.publish(plan());
    request(&mut session)?;
    let mut rounds = || (0..1000).for_each(|_| request(&mut session).unwrap());
    assert_eq!(allocations(&mut rounds), 0);
    Ok(())
}
