//! What a session announces: that a request begins, and that it has ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::DeviceError;

use super::members::Membership;
use super::{Lending, NEVER};

/// What one session announces. A session that is dropped in the middle of a request ends it.
pub(crate) struct Requests {
    lending: Arc<Lending>,
    membership: Arc<Membership>,
    /// Requests of this session that are under way.
    open: u32,
}

impl Requests {
    pub(crate) fn new(lending: &Arc<Lending>, membership: &Arc<Membership>) -> Self {
        Self { lending: Arc::clone(lending), membership: Arc::clone(membership), open: 0 }
    }

    /// Takes back what the tenant lent.
    ///
    /// # Errors
    /// What the device says of a borrower's grant: that borrower may stay where it is until a request begins that can tell it. This one has not begun then, and
    /// what was taken back is lent again as after any other.
    pub(in crate::launch) fn begin(&mut self) -> Result<(), DeviceError> {
        self.open += 1;
        let begun = self.lending.begin(&self.membership);
        self.settle();
        begun.inspect_err(|_| self.end())
    }

    pub(in crate::launch) fn end(&mut self) {
        let began = self.open > 0;
        self.open = self.open.saturating_sub(1);
        self.lending.end(&self.membership, began);
        self.settle();
    }

    /// Lends what is due, of whichever tenant. What fails there is another tenant's affair.
    #[inline]
    pub(in crate::launch) fn settle(&self) {
        if self.lending.due.load(Ordering::Relaxed) != NEVER {
            self.settle_due();
        }
    }

    #[cold]
    fn settle_due(&self) {
        if let Err(error) = self.lending.settle() {
            tracing::warn!("a grant was not widened: {error}");
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        while self.open > 0 {
            self.end();
        }
    }
}
