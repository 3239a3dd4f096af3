//! What becomes of requests that an engine tells of: latencies in the tenant's log, and SMs that are lent between them.

use std::time::Duration;

use crate::device::DeviceError;
use crate::launch::lending::Holdings;
use crate::telemetry::RequestLog;
use crate::tenant::TenantId;

use super::{AdmitError, Runtime};

impl Runtime {
    /// What an engine tells of the tenant's requests through, for metrics and for the timeline.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn request_log(&self, tenant: TenantId) -> Result<RequestLog, AdmitError> {
        let state = self.state.lock();
        state.tenant(tenant).map(|_| self.telemetry.request_log(tenant))
    }

    /// What a tenant has at this moment: its own TPCs, which of them it lends, and what it borrows.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it was dismissed.
    pub fn holdings(&self, tenant: TenantId) -> Result<Holdings, AdmitError> {
        let state = self.state.lock();
        Ok(self.lending.holdings(&state.tenant(tenant)?.membership))
    }

    /// From here on a tenant lends its TPCs once it has been idle for so long;
    /// [`DEFAULT_HYSTERESIS`](crate::launch::lending::DEFAULT_HYSTERESIS) until then. Zero lends as a request ends.
    #[tracing::instrument(level = "debug", skip_all, fields(?hysteresis))]
    pub fn set_hysteresis(&self, hysteresis: Duration) {
        self.lending.set_hysteresis(hysteresis);
    }

    /// Lends the TPCs of tenants that have been idle for long enough. Replays, and requests that begin or end, do the same on their way; an engine
    /// that only waits should call this at the time of the device's clock that it returns. `None` where nothing will be due before another
    /// request ends.
    ///
    /// # Errors
    /// What the device says of a borrower's grant.
    pub fn settle(&self) -> Result<Option<Duration>, DeviceError> {
        self.lending.settle()
    }
}
