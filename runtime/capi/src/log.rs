//! Warnings that belong to no call, such as those about a profile measured under another driver: to whoever asks for them.

use std::ffi::{CString, c_char, c_void};
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::status::{Failure, guard, smidgen_status};

/// How much a message matters. Each level includes those before it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms)] // The header writes them so.
pub enum smidgen_level {
    /// Something failed.
    ERROR = 1,
    /// Something is not as it should be.
    WARN = 2,
    /// Something that happens rarely has happened.
    INFO = 3,
    /// For whoever looks for a mistake.
    DEBUG = 4,
}

/// Takes one message, a line of UTF-8 that is gone when the function returns. `level` is a smidgen_level. It may be called on any thread and
/// on several at a time, also while a call into the library is running: it must not call the library, throw or longjmp.
pub type smidgen_log_fn = Option<unsafe extern "C" fn(level: i32, message: *const c_char, user: *mut c_void)>;

/// Sends the library's messages up to `level` (a smidgen_level) to `log`, with `user` as it is. Without it they are lost. Once in a process,
/// best before a device is opened; SMIDGEN_STATUS_STATE the second time, and where a Rust program has set up tracing already.
#[unsafe(no_mangle)]
pub extern "C" fn smidgen_set_log(log: smidgen_log_fn, user: *mut c_void, level: i32) -> smidgen_status {
    guard(|| {
        let log = log.ok_or_else(|| crate::arguments::null("log"))?;
        let most = match level {
            1 => Level::ERROR,
            2 => Level::WARN,
            3 => Level::INFO,
            4 => Level::DEBUG,
            _ => return Err(crate::arguments::refused(format!("`level` is {level}, which is no smidgen_level"))),
        };
        tracing::subscriber::set_global_default(Log { log, user: User(user), most })
            .map_err(|_| Failure::new(smidgen_status::STATE, "messages go somewhere already; set the log once, and first"))
    })
}

/// The caller's pointer, which is only handed back.
struct User(*mut c_void);

// SAFETY: never dereferenced here; the header says that the callback is called on any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

struct Log {
    log: unsafe extern "C" fn(i32, *const c_char, *mut c_void),
    user: User,
    most: Level,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.most
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => smidgen_level::ERROR,
            Level::WARN => smidgen_level::WARN,
            Level::INFO => smidgen_level::INFO,
            _ => smidgen_level::DEBUG,
        };
        let mut line = Line::default();
        event.record(&mut line);
        let mut text = line.message + &line.fields;
        text.retain(|character| character != '\0');
        let text = CString::new(text).unwrap_or_default();
        // SAFETY: the caller of `smidgen_set_log` vouches for the function; the text lives until it returns.
        unsafe { (self.log)(level as i32, text.as_ptr(), self.user.0) };
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event's message and fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a text cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
