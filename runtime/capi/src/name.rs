//! Names of kernels: texts that come from C, kept for as long as the process so that a launch compares pointers and not letters.

use std::collections::HashMap;
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;

use parking_lot::Mutex;
use smidgen_runtime::launch::KernelName;

use crate::arguments::{given, refused, text};
use crate::status::{guard, smidgen_status};

/// A kernel's name as profiles know it, or the symbol of its entry point. It lives as long as the process and may be used by all threads.
pub struct smidgen_name {
    pub(crate) name: KernelName,
}

/// The names asked for so far.
static NAMES: Mutex<Option<HashMap<&'static str, &'static smidgen_name>>> = Mutex::new(None);

/// The name that `spelling` spells: 1 to 255 letters, digits, underscores, dots and dollar signs. Equal texts give the same name. It takes a
/// lock and memory that is never given back: get each name once, when the engine starts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_name_get(spelling: *const c_char, name: Option<&mut MaybeUninit<*const smidgen_name>>) -> smidgen_status {
    guard(|| {
        let target = given(name, "name")?;
        target.write(ptr::null());
        // SAFETY: the caller's promise is passed on.
        let spelling = unsafe { text(spelling, "spelling") }?;
        if spelling.len() > 255 || !KernelName::is_name(spelling) {
            return Err(refused(format!("`{spelling}` is no name: one has 1 to 255 letters, digits, underscores, dots and dollar signs")));
        }
        let names = &mut *NAMES.lock();
        let names = names.get_or_insert_default();
        let name = match names.get(spelling) {
            Some(&known) => known,
            None => {
                let kept: &'static str = Box::leak(spelling.into());
                let name: &'static smidgen_name = Box::leak(Box::new(smidgen_name { name: KernelName::new(kept) }));
                names.insert(kept, name);
                name
            }
        };
        target.write(name);
        Ok(())
    })
}
