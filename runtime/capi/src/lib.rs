//! The runtime for engines that are not written in Rust: `include/smidgen.h` and the library behind it.
//!
//! `cargo xtask header` derives the header from this crate by cbindgen, documentation included, so what is said here of a function is what
//! a C programmer reads; `cbindgen.toml` holds the rules that hold for all of them. Nothing here decides anything: each function checks what
//! it was handed, calls the runtime, and turns the outcome into a status.
//!
//! | file | what it is for |
//! |---|---|
//! | `version` | which header fits which library |
//! | `status` | statuses, the last error of each thread, and the wall that no panic passes |
//! | `arguments` | pointers, texts and sized structs as C hands them over |
//! | `log` | warnings that belong to no call |
//! | `name`, `kernel` | kernels as C describes them |
//! | `device`, `runtime`, `session` | the three handles and what can be done with each; graphs are a session's |
//! | `tenant`, `requests` | tenants that change while they run; what sessions tell of requests, and their inputs |
//!
//! **Invariant:** no panic and no null pointer crosses the boundary, and the launch path adds no lock that waits and no allocation.

// What Rust reads is what C reads: the header's names stand here as they are.
#![allow(non_camel_case_types)]
// What a caller promises is the same for every function, and said once, where the header begins (`cbindgen.toml`).
#![allow(clippy::missing_safety_doc)]

mod arguments;
mod device;
mod kernel;
mod log;
mod name;
mod requests;
mod runtime;
mod session;
mod status;
mod tenant;
mod version;

pub use device::*;
pub use kernel::*;
pub use log::*;
pub use name::*;
pub use requests::*;
pub use runtime::*;
pub use session::*;
pub use status::{smidgen_last_error, smidgen_status, smidgen_status_name};
pub use tenant::*;
pub use version::*;
