// Generated from abi.h by `cargo xtask abi`.
