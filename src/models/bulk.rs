//! How what is large gets to the device: a model's weights, and images.
//!
//! Gigabytes of weights must not keep the link from another tenant's inputs, so a tenant's go through its [`Uploader`]: in chunks, in its class's turn and at the
//! rate it is held to. Token ids, page tables and lengths do not come here: they are a few kB, less than any chunk, and a step waits for them.

use smidgen_runtime::device::DevicePtr;
use smidgen_runtime::launch::{LaunchError, Session};
use smidgen_runtime::transfer::{After, Uploader};

/// What copies weights and images to the device.
pub trait BulkCopy {
    /// Copies `bytes` to `target`, after what `after` says; what `session` launches from here on waits for the copy. `bytes` may be used again when this
    /// returns.
    ///
    /// # Errors
    /// What the device says, and of an [`Uploader`] whatever [`Uploader::upload`] refuses.
    fn copy(&mut self, session: &mut Session, target: DevicePtr, bytes: &[u8], after: After) -> Result<(), LaunchError>;
}

/// In turn with other tenants' copies.
impl BulkCopy for Uploader {
    fn copy(&mut self, session: &mut Session, target: DevicePtr, bytes: &[u8], after: After) -> Result<(), LaunchError> {
        self.upload(session, target, bytes, after)
    }
}

/// On the session's own stream, each copy in one piece: for a model that is alone on its GPU, where there is nobody to give way to.
#[derive(Debug, Clone, Copy)]
pub struct Direct;

impl BulkCopy for Direct {
    /// The stream keeps every order that there is to keep, whatever `after` says.
    fn copy(&mut self, session: &mut Session, target: DevicePtr, bytes: &[u8], _after: After) -> Result<(), LaunchError> {
        Ok(session.device().upload(session.stream(), target, bytes)?)
    }
}
