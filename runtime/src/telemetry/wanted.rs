//! What the runtime wants of a tenant that replays graphs: that its sessions launch a few requests which they could replay, since inside a replay no kernel can be
//! timed alone.
//!
//! The runtime asks where whole replays differ from what the plan expects, so a tenant whose profile holds is never asked. A session that is looks at
//! most once in [`LAUNCHED_STRIDE`] of its replays, and where its tenant's objective is in no danger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::device::Fingerprint;

/// Replays of a session for each request that it launches instead: few enough slow requests that the 99th percentile does not know of them.
pub(crate) const LAUNCHED_STRIDE: u64 = 1000;

/// Launches of such a request that may be timed. With [`LAUNCHED_STRIDE`], at most 0.8 % of what a session launches and replays.
pub(super) const MOST_TIMED: u32 = 8;

/// Requests that are asked for at a time: four for each sample of the longest window, since not all kernels have their turn in every one.
const MOST_REQUESTS: u32 = 64;

/// What is wanted of one tenant.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Requests still to be launched by any session of the tenant.
    requests: AtomicU32,
    /// Kernels whose times are wanted.
    kernels: Mutex<Arc<[Fingerprint]>>,
}

impl Wanted {
    /// Whether any request is to be launched. Asked for each that could be replayed.
    #[inline]
    pub(super) fn is_any(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// A request is about to be launched: the kernels to time in it; none where there is none to launch after all.
    pub(super) fn take(&self) -> Option<Arc<[Fingerprint]>> {
        // The runtime may be writing: the next request will do as well, and this one shall not wait.
        let kernels = self.kernels.try_lock().map(|kernels| Arc::clone(&kernels)).filter(|kernels| !kernels.is_empty())?;
        let one_less = |requests: u32| requests.checked_sub(1);
        self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok().map(|_| kernels)
    }

    /// Asks for requests.
    pub(super) fn ask(&self) {
        self.requests.store(MOST_REQUESTS, Ordering::Relaxed);
    }

    /// Wants the times of `kernels` from here on, or nothing more where there are none. Whether requests are still to be launched for them.
    pub(super) fn set_kernels(&self, kernels: Vec<Fingerprint>) -> bool {
        if kernels.is_empty() {
            self.requests.store(0, Ordering::Relaxed);
        }
        *self.kernels.lock() = kernels.into();
        self.is_any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_asked_for_until_they_are_launched_or_nothing_is_wanted() {
        let wanted = Wanted::default();
        wanted.ask();
        assert!(wanted.take().is_none(), "of no kernel");
        assert!(wanted.set_kernels(vec![Fingerprint(1)]));
        assert_eq!((0..100).filter(|_| wanted.take().is_some()).count(), MOST_REQUESTS as usize);
        assert!(!wanted.is_any());
        wanted.ask();
        assert!(wanted.is_any());
        assert!(!wanted.set_kernels(Vec::new()));
        assert!(!wanted.is_any() && wanted.take().is_none());
    }
}
