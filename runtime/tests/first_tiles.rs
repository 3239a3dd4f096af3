//! Which launches begin with the tiles of their workers' numbers: what the device is told (`Tiles::numbered` in kernels/elastic.cuh).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use smidgen_runtime::device::{Device, LaunchRequest, PartitionId, Priority, Sms, Topology};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{
    Grids, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Placement, Plan, PlanCell, Session, TenantPlan, Walls, Work,
};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::tenant::TenantId;

mod support;

use support::idle::Idle;

thread_local! {
    /// Of this thread's launches: tiles, and how many of them the counter leaves out.
    static LAUNCHED: RefCell<Vec<[u32; 2]>> = const { RefCell::new(Vec::new()) };
}

fn keep(request: &LaunchRequest<'_>) {
    LAUNCHED.with_borrow_mut(|launched| launched.push([request.tiles.count, request.tiles.numbered]));
}

/// A launch of so many tiles, by pairs of blocks where there are two for a tile.
#[derive(Debug, Clone, Copy)]
struct Tiled {
    tiles: u32,
    blocks_per_tile: u32,
    elastic: bool,
    begins_by_number: bool,
}

/// For 132 SMs a launch of several rounds of tiles.
const LONG: Tiled = Tiled { tiles: 1000, blocks_per_tile: 1, elastic: true, begins_by_number: true };

// SAFETY: no device code is run.
unsafe impl Kernel for Tiled {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new("tiled"), [self.tiles])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch {
            symbol: "tiled",
            grid: Launch::persistent_grid(self.tiles * self.blocks_per_tile, sms, 1),
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles: self.tiles,
            blocks_per_tile: self.blocks_per_tile,
            elastic: self.elastic,
            programmatic: false,
            begins_by_number: self.begins_by_number,
            params: Params::new(0_u32),
        })
    }
}

/// What the device is told of `kernels`, on 132 SMs.
fn told(borrows: bool, grids: Grids, kernels: &[Tiled]) -> Result<Vec<[u32; 2]>, LaunchError> {
    let device: Arc<dyn Device> = Idle::that_does(keep);
    let all = TpcSet::range(0, 66);
    let default = Placement { sms: Sms(132), partition: PartitionId::WHOLE, priority: Priority::Normal, borrows };
    let tenant = TenantPlan { owned: all, grant: all, default, kernels: HashMap::new(), walls: Walls::default() };
    let plans = PlanCell::new(Plan { policy: "test", tenants: HashMap::from([(TenantId(0), tenant)]), ..Plan::default() });
    let mut session = Session::new(&device, &plans, TenantId(0), Arc::new(Grant::new(&device)?))?;
    session.set_grids(grids);
    LAUNCHED.take();
    kernels.iter().try_for_each(|kernel| session.launch(kernel))?;
    Ok(LAUNCHED.take())
}

#[test]
fn workers_that_can_begin_with_the_tiles_of_their_own_numbers() -> Result<(), LaunchError> {
    let in_pairs = Tiled { tiles: 200, blocks_per_tile: 2, ..LONG };
    let three_for_two = Tiled { tiles: 198, ..LONG };
    assert_eq!(told(false, Grids::Persistent, &[LONG, in_pairs, three_for_two])?, [[1000, 132], [200, 66], [198, 132]]);
    Ok(())
}

#[test]
fn all_tiles_are_counted_where_a_worker_could_not_leave_its_own_to_others_or_knows_nothing_of_it() -> Result<(), LaunchError> {
    let too_few = Tiled { tiles: 197, ..LONG };
    let unknowing = Tiled { tiles: 1001, begins_by_number: false, ..LONG };
    let short = Tiled { tiles: 1002, elastic: false, ..LONG };
    assert_eq!(told(false, Grids::Persistent, &[too_few, unknowing, short])?, [[197, 0], [1001, 0], [1002, 0]]);
    Ok(())
}

#[test]
fn all_tiles_are_counted_where_a_launch_borrows_or_has_a_block_for_each() -> Result<(), LaunchError> {
    assert_eq!(told(true, Grids::Persistent, &[LONG])?, [[1000, 0]]);
    assert_eq!(told(false, Grids::TilePerBlock, &[LONG])?, [[1000, 0]]);
    Ok(())
}
