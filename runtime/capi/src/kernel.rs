//! Kernels as C describes them: a key, the work, and the launch at any SM count.

use std::cell::Cell;
use std::ffi::c_void;

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, Launch, LaunchError, MAX_PARAM_BYTES, Params, Precision, Work};

use crate::arguments::{Sized32, bytes, handle, null, refused};
use crate::name::smidgen_name;
use crate::status::Failure;

/// The most bytes that a kernel's first parameter may have.
pub const SMIDGEN_MAX_PARAM_BYTES: usize = 768;
const _: () = assert!(SMIDGEN_MAX_PARAM_BYTES == MAX_PARAM_BYTES);

/// The most extents that a kernel's shape may have.
pub const SMIDGEN_MAX_RANK: usize = 6;

/// A flag of smidgen_launch: the kernel's blocks take tiles from a counter and poll the tenant's grant before each, so that the launch can
/// give SMs back, or get more, while it runs. Passed over where there are more than 2^22 tiles.
pub const SMIDGEN_LAUNCH_ELASTIC: u32 = 1;

/// A flag of smidgen_launch: every thread waits (griddepcontrol.wait) before it touches what earlier launches write, so that the blocks of
/// this launch may start while the last ones of the launch before it still run.
pub const SMIDGEN_LAUNCH_PROGRAMMATIC: u32 = 2;

/// The element type that a kernel computes on.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum smidgen_precision {
    /// FP16 operands, FP32 sums.
    F16 = 0,
    /// FP32 throughout.
    F32 = 1,
}

/// What the profiler measures a launch as, and plans place it by: name, shape and precision.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smidgen_key {
    /// The name that profiles know the kernel by.
    pub name: *const smidgen_name,
    /// A smidgen_precision.
    pub precision: u32,
    /// How many of `extents` count, at most SMIDGEN_MAX_RANK.
    pub rank: u32,
    /// The shape, such as m, n and k of a matrix product.
    pub extents: [u32; SMIDGEN_MAX_RANK],
}

/// The least that one launch must do, whatever the implementation: for rooflines, and for the simulator where there is no profile.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smidgen_work {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes through device memory, each input read once and each output written once.
    pub bytes: u64,
}

/// A launch at one SM count. The kernel is an `extern "C" __global__` function of two parameters, a struct of its own and smidgen_tiles; one
/// that needs no tiles may leave the second out. It runs with a grid and blocks of one dimension.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smidgen_launch {
    /// The symbol of the kernel's entry point.
    pub symbol: *const smidgen_name,
    /// The first parameter, copied before the call returns. It is aligned to 64 bytes, as tensor maps want it.
    pub params: *const c_void,
    /// Its size, at most SMIDGEN_MAX_PARAM_BYTES. The rest, if the kernel reads more, is zeros.
    pub params_bytes: u32,
    /// Thread blocks; 0 for as many as the SMs hold at once (`blocks_per_sm` on each), but no more than `tiles`.
    pub grid: u32,
    /// Threads in a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Thread blocks of this kernel that fit on an SM at once, at least 1.
    pub blocks_per_sm: u32,
    /// Tiles to be done, which the kernel finds in smidgen_tiles.
    pub tiles: u32,
    /// SMIDGEN_LAUNCH_ELASTIC and SMIDGEN_LAUNCH_PROGRAMMATIC, or 0.
    pub flags: u32,
    /// Must be 0.
    pub reserved: [u32; 3],
}

/// A kernel's second parameter: where tiles are counted, and which SMs may take them. kernels/elastic.cuh shows how a kernel keeps to it.
#[repr(C)]
pub struct smidgen_tiles {
    /// The address of the tile counter; 0 for a launch that is not elastic, whose block b does tiles b, b + gridDim.x, and so on.
    pub progress: u64,
    /// The address of the tenant's grant, one bit for each SM in %smid order; 0 where every SM is granted.
    pub grant: u64,
    /// Tiles to be done.
    pub count: u32,
    /// 0 for the launch that owns the counter, else 1 + the epoch that it may take tiles of.
    pub joins: u32,
    /// How many tiles the owner's workers begin with by their own numbers, and the counter leaves out: 0 in kernels launched from here.
    pub numbered: u32,
    /// 0.
    pub unused: u32,
}

/// Fills in the launch that uses at most `sms` SMs, given the kernel's `launch` to start from, and returns 0; or returns something else, and
/// the launch fails with SMIDGEN_STATUS_UNSUPPORTED. What `launch->params` points to must last until the launch's call has returned. The
/// results of the kernel must not depend on `sms`. It is called during the launch, on its thread, and must be quick, throw nothing, and not
/// use the session.
pub type smidgen_configure_fn = Option<unsafe extern "C" fn(sms: u32, launch: *mut smidgen_launch, user: *mut c_void) -> i32>;

/// A kernel to launch: what it is, what it costs, and how it is launched on any number of SMs.
#[repr(C)]
pub struct smidgen_kernel {
    /// sizeof(smidgen_kernel), set by the caller.
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// What plans place it by.
    pub key: smidgen_key,
    /// The least it must do.
    pub work: smidgen_work,
    /// How it is launched on a given number of SMs; null where `launch` does for any.
    pub configure: smidgen_configure_fn,
    /// Handed to `configure` as it is.
    pub user: *mut c_void,
    /// The launch, or what `configure` starts from.
    pub launch: smidgen_launch,
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_kernel {
    const NAME: &'static str = "smidgen_kernel";
}

impl smidgen_key {
    /// # Safety
    /// `name` is null or came from `smidgen_name_get`.
    #[inline]
    pub(crate) unsafe fn read(&self) -> Result<KernelKey, Failure> {
        // SAFETY: the caller's promise is passed on.
        let name = unsafe { handle(self.name, "key.name") }?.name;
        let rank = self.rank as usize;
        let key = self.extents.get(..rank).and_then(|extents| KernelKey::from_extents(name, extents));
        let key = key.ok_or_else(|| refused(format!("`key.rank` is {rank}, and a shape has {SMIDGEN_MAX_RANK} extents at most")))?;
        match self.precision {
            precision if precision == smidgen_precision::F16 as u32 => Ok(key),
            precision if precision == smidgen_precision::F32 as u32 => Ok(key.with_precision(Precision::F32)),
            unknown => Err(refused(format!("`key.precision` is {unknown}, which is no smidgen_precision"))),
        }
    }
}

impl smidgen_work {
    pub(crate) fn read(self) -> Work {
        Work { flops: self.flops, bytes: self.bytes }
    }
}

/// A kernel of the caller's for the length of one launch.
pub(crate) struct Described<'a> {
    kernel: &'a smidgen_kernel,
    key: KernelKey,
    /// What is wrong with the launch, where it is more than a shape that does not suit.
    flaw: Cell<Option<Failure>>,
}

impl<'a> Described<'a> {
    /// # Safety
    /// All pointers in `kernel` are null or what the header says, for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn new(kernel: &'a smidgen_kernel) -> Result<Self, Failure> {
        if kernel.reserved != 0 {
            return Err(refused("`kernel.reserved` is not 0".to_owned()));
        }
        // SAFETY: the caller's promise is passed on.
        let key = unsafe { kernel.key.read() }?;
        Ok(Self { kernel, key, flaw: Cell::new(None) })
    }

    /// The failure that is better known here than to whoever reports `error`.
    pub(crate) fn failure(self, error: LaunchError) -> Failure {
        self.flaw.take().unwrap_or_else(|| error.into())
    }

    #[cold]
    fn unsupported(&self, reason: impl Into<String>) -> LaunchError {
        LaunchError::Unsupported { kernel: self.key.to_string(), reason: reason.into() }
    }
}

// SAFETY: whoever launches vouches for the function's parameters and for the addresses in them: the header says so.
unsafe impl Kernel for Described<'_> {
    fn key(&self) -> KernelKey {
        self.key
    }

    fn work(&self) -> Work {
        self.kernel.work.read()
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        let mut launch = self.kernel.launch;
        if let Some(configure) = self.kernel.configure {
            // SAFETY: `Described::new`'s caller vouches for the callback.
            let refusal = unsafe { configure(sms.get(), &raw mut launch, self.kernel.user) };
            if refusal != 0 {
                return Err(self.unsupported(format!("its configure callback returned {refusal} for {sms} SMs")));
            }
        }
        // SAFETY: `Described::new`'s caller vouches for the pointers, and the callback for those that it put there.
        unsafe { read(&launch, sms) }.map_err(|flaw| {
            self.flaw.set(Some(flaw));
            self.unsupported("its launch is wrong")
        })
    }
}

/// # Safety
/// The pointers in `launch` are null or what the header says.
#[inline]
unsafe fn read(launch: &smidgen_launch, sms: Sms) -> Result<Launch, Failure> {
    const FLAGS: u32 = SMIDGEN_LAUNCH_ELASTIC | SMIDGEN_LAUNCH_PROGRAMMATIC;
    // SAFETY: the caller's promise is passed on.
    let symbol = unsafe { handle(launch.symbol, "launch.symbol") }?.name.text();
    let size = launch.params_bytes as usize;
    if size > MAX_PARAM_BYTES {
        return Err(refused(format!("`launch.params_bytes` is {size}, and parameters have {MAX_PARAM_BYTES} bytes at most")));
    }
    if size > 0 && launch.params.is_null() {
        return Err(null("launch.params"));
    }
    for (field, value) in [("block", launch.block), ("blocks_per_sm", launch.blocks_per_sm)] {
        if value == 0 {
            return Err(refused(format!("`launch.{field}` is 0")));
        }
    }
    if launch.flags & !FLAGS != 0 || launch.reserved != [0; 3] {
        return Err(refused("`launch.flags` or `launch.reserved` have bits that this library does not know".to_owned()));
    }
    // SAFETY: the caller's promise is passed on.
    let given = unsafe { bytes(launch.params, size, "launch.params") }?;
    let mut params = [0_u8; MAX_PARAM_BYTES];
    params[..size].copy_from_slice(given);
    let grid = match launch.grid {
        0 => Launch::persistent_grid(launch.tiles, sms, launch.blocks_per_sm),
        grid => grid,
    };
    Ok(Launch {
        symbol,
        grid,
        block: launch.block,
        shared_bytes: launch.shared_bytes,
        blocks_per_sm: launch.blocks_per_sm,
        tiles: launch.tiles,
        blocks_per_tile: 1,
        elastic: launch.flags & SMIDGEN_LAUNCH_ELASTIC != 0,
        programmatic: launch.flags & SMIDGEN_LAUNCH_PROGRAMMATIC != 0,
        begins_by_number: false,
        params: Params::new(params),
    })
}
