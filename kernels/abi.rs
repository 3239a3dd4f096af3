//! The structs that cross from Rust to the kernels. Generated from `abi.h` by `cargo xtask abi`: change that file, not this one.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, rustdoc::all)]

#[doc = " Where one chain of launches counts its tiles; see elastic.cuh for who writes what. All zero before the first launch."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct TileProgress {
    pub taken: ::std::os::raw::c_ulonglong,
    pub finished: u32,
    pub departed: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TileProgress"][::std::mem::size_of::<TileProgress>() - 16usize];
    ["Alignment of TileProgress"][::std::mem::align_of::<TileProgress>() - 8usize];
    ["Offset of field: TileProgress::taken"][::std::mem::offset_of!(TileProgress, taken) - 0usize];
    ["Offset of field: TileProgress::finished"][::std::mem::offset_of!(TileProgress, finished) - 8usize];
    ["Offset of field: TileProgress::departed"][::std::mem::offset_of!(TileProgress, departed) - 12usize];
};
#[doc = " Every kernel's second parameter. The runtime crate's TilesArg is the same struct."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Tiles {
    #[doc = " TileProgress*"]
    pub progress: u64,
    #[doc = " one bit per SM in %smid order; 0 where every SM is granted"]
    pub grant: u64,
    #[doc = " tiles to be done"]
    pub count: u32,
    #[doc = " 0 for the owner; 1 + epoch for a joiner"]
    pub joins: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Tiles"][::std::mem::size_of::<Tiles>() - 24usize];
    ["Alignment of Tiles"][::std::mem::align_of::<Tiles>() - 8usize];
    ["Offset of field: Tiles::progress"][::std::mem::offset_of!(Tiles, progress) - 0usize];
    ["Offset of field: Tiles::grant"][::std::mem::offset_of!(Tiles, grant) - 8usize];
    ["Offset of field: Tiles::count"][::std::mem::offset_of!(Tiles, count) - 16usize];
    ["Offset of field: Tiles::joins"][::std::mem::offset_of!(Tiles, joins) - 20usize];
};
