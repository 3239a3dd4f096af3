//! What a session tells of its requests, and how their inputs reach the device.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::time::Duration;

use ::smidgen_runtime::device::{DevicePtr, Event};
use ::smidgen_runtime::transfer::After;

use crate::arguments::{bytes, given, refused};
use crate::session::{enter, smidgen_session};
use crate::status::{Failure, guard, smidgen_status};

/// What a transfer comes after.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms)] // The header writes them so.
pub enum smidgen_after {
    /// Everything that the session has launched so far.
    LAUNCHES = 0,
    /// Nothing: no launch in flight touches the target.
    NOTHING = 1,
}

/// Announces that a request begins: SMs that the tenant owns and has lent are taken back, so that borrowers leave them within one tile. Requests may overlap.
/// A tenant that never announces one lends nothing. After a failure no request has begun, and none is to be ended; after SMIDGEN_STATUS_DEVICE a borrower may
/// not have been told and may stay until the next request begins, which tells it first. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_begin_request(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        chain.session.begin_request()?;
        chain.log.begun();
        Ok(())
    })
}

/// Announces that a request has ended on the device: after the last one, the tenant's SMs are lent to whom the plan allows. Ending more requests than began
/// says that the tenant is idle, which an engine may say at its start. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_end_request(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        chain.session.end_request()?;
        chain.log.rests();
        Ok(())
    })
}

/// Tells of a request that is answered now and arrived at `arrival_nanoseconds` on the device's clock (smidgen_device_now). `spent` is the part of the tenant's
/// objective that it took: above 1 it missed it; 0 where there is none. Once for each request that was begun, on the session where it was, or for none:
/// smidgen_runtime_adapt and metrics know of no others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_answered(session: *mut smidgen_session, arrival_nanoseconds: u64, spent: f64) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        if spent.is_nan() || spent < 0.0 {
            return Err(refused(format!("`spent` is {spent}, which is no part of an objective; 0 stands for no objective")));
        }
        let ended = chain.session.device().now();
        chain.log.answered(Duration::from_nanos(arrival_nanoseconds), ended, spent);
        Ok(())
    })
}

/// Marks the end of the chain: what is launched so far, for smidgen_session_is_done. Each mark takes the place of the one before. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_mark(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = &mut *unsafe { enter(session) }?;
        chain.session.refuse_in_capture()?;
        match &chain.mark {
            Some(mark) => chain.session.mark(mark)?,
            None => {
                let mark = Event::new(chain.session.device())?;
                chain.session.mark(&mark)?;
                // Not before: an event that marks nothing counts as done.
                chain.mark = Some(mark);
            }
        }
        Ok(())
    })
}

/// Sets `done` to whether everything before the last mark is done, without waiting for it: for an engine that polls. On the simulator, where time passes only
/// while somebody waits, a call that finds it not done lets time pass to the next event. SMIDGEN_STATUS_STATE where nothing was marked. Not during
/// a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_is_done(session: *mut smidgen_session, done: Option<&mut MaybeUninit<bool>>) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        let done = given(done, "done")?;
        chain.session.refuse_in_capture()?;
        let mark =
            chain.mark.as_ref().ok_or_else(|| Failure::new(smidgen_status::STATE, "nothing is marked; call smidgen_session_mark first"))?;
        let device = chain.session.device();
        let is_done = device.query(mark.id())?;
        if !is_done && device.is_simulated() {
            device.pass_time(Duration::MAX);
        }
        done.write(is_done);
        Ok(())
    })
}

/// Makes the last long launch use SMs that came back to the tenant since it started. Call it while waiting for work of milliseconds: while nothing came
/// back, it costs a few loads. `grew`, where it is not null, says whether there was anything to do. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_grow(session: *mut smidgen_session, grew: Option<&mut MaybeUninit<bool>>) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let grown = unsafe { enter(session) }?.session.grow()?;
        grew.map(|grew| grew.write(grown));
        Ok(())
    })
}

/// Copies `size` host bytes to device memory in turn with the transfers of all tenants: in chunks, those of latency tenants first, within the rates of
/// smidgen_runtime_limit_transfers. `after` is a smidgen_after; launches from here on wait for the copy in any case. Returns when the source may be used
/// again. After SMIDGEN_STATUS_DEVICE part of the target may have been written. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_transfer(
    session: *mut smidgen_session,
    target: u64,
    source: *const c_void,
    size: usize,
    after: u32,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        // SAFETY: the caller's promise is passed on.
        let source = unsafe { bytes(source, size, "source") }?;
        let after = match after {
            after if after == smidgen_after::LAUNCHES as u32 => After::Launches,
            after if after == smidgen_after::NOTHING as u32 => After::Nothing,
            unknown => return Err(refused(format!("`after` is {unknown}, which is no smidgen_after"))),
        };
        // Before an uploader is made, which allocates.
        chain.session.refuse_in_capture()?;
        let chain = &mut *chain;
        let uploader = match &mut chain.uploader {
            Some(uploader) => uploader,
            none => none.insert(chain.runtime.uploader(chain.tenant)?),
        };
        Ok(uploader.upload(&mut chain.session, DevicePtr(target), source, after)?)
    })
}
