//! Which header fits which library.

use crate::status::{Failure, guard, smidgen_status};

/// The version of this interface, major in the upper half and minor in the lower: 1.4. A new minor version adds functions and constants,
/// and structs with a struct_size stay as long as they are; a new major version may change anything.
pub const SMIDGEN_ABI_VERSION: u32 = 0x0001_0004;

/// The version of the library, in the form of SMIDGEN_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn smidgen_abi_version() -> u32 {
    SMIDGEN_ABI_VERSION
}

/// Whether this library can serve a program that was compiled with a header of version `header`: call it first, with SMIDGEN_ABI_VERSION.
/// SMIDGEN_STATUS_VERSION if the major versions differ, or the library's minor version is older than the header's.
#[unsafe(no_mangle)]
pub extern "C" fn smidgen_require_abi(header: u32) -> smidgen_status {
    guard(|| {
        let parts = |version: u32| (version >> 16, version & 0xffff);
        let ((major, minor), (our_major, our_minor)) = (parts(header), parts(SMIDGEN_ABI_VERSION));
        if major == our_major && minor <= our_minor {
            return Ok(());
        }
        let message = format!(
            "the program was compiled with smidgen.h of version {major}.{minor}, this library is {our_major}.{our_minor}; compile it with the library's own header"
        );
        Err(Failure::new(smidgen_status::VERSION, message))
    })
}
