//! Pointers, texts and sized structs as C hands them over, checked as far as they can be: for null, for UTF-8, for the size that the
//! caller's header gives a struct. That a pointer which is not null points to what the header says is the caller's part.

use std::ffi::{CStr, c_char, c_void};
use std::mem::{MaybeUninit, size_of};
use std::slice;

use crate::status::{Failure, smidgen_status};

/// The pointer's target, or the status for a null pointer.
#[inline]
pub(crate) fn given<T>(argument: Option<T>, name: &str) -> Result<T, Failure> {
    argument.ok_or_else(|| null(name))
}

#[cold]
pub(crate) fn null(name: &str) -> Failure {
    Failure::new(smidgen_status::NULL, format!("`{name}` is null"))
}

#[cold]
pub(crate) fn refused(message: String) -> Failure {
    Failure::new(smidgen_status::ARGUMENT, message)
}

/// What a handle stands for.
///
/// # Safety
/// `pointer` is null or a handle that was not destroyed, and is not while `'a` lasts.
#[inline]
pub(crate) unsafe fn handle<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise is passed on.
    given(unsafe { pointer.as_ref() }, name)
}

/// A NUL-terminated UTF-8 text.
///
/// # Safety
/// `pointer` is null or points to a NUL-terminated text that stays as it is for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: the caller's promise is passed on.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| refused(format!("`{name}` is not UTF-8")))
}

/// `count` values; none may be at null.
///
/// # Safety
/// `pointer` is null or points to `count` values of `T` that stay as they are for `'a`.
#[inline]
pub(crate) unsafe fn values<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(refused(format!("`{name}` cannot have {count} elements")));
    }
    // SAFETY: the caller's promise is passed on; the length is within what a slice may have.
    Ok(unsafe { slice::from_raw_parts(pointer, count) })
}

/// As [`values`], for bytes of any type.
///
/// # Safety
/// `pointer` is null or points to `count` initialised bytes that stay as they are for `'a`.
#[inline]
pub(crate) unsafe fn bytes<'a>(pointer: *const c_void, count: usize, name: &str) -> Result<&'a [u8], Failure> {
    // SAFETY: the caller's promise is passed on.
    unsafe { values(pointer.cast(), count, name) }
}

/// A struct of the header that begins with its size, by which a program with another header is known. No struct has changed its size since 1.0, and none does
/// before 2.0: a minor version that needs more adds a function.
///
/// # Safety
/// The first field is a `u32`.
pub(crate) unsafe trait Sized32 {
    const NAME: &'static str;
}

/// The struct, once its size shows that it is the one that this library knows.
///
/// # Safety
/// `pointer` is null or points to a struct that begins with its size and stays as it is for `'a`.
#[inline]
pub(crate) unsafe fn sized<'a, T: Sized32>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: the struct begins with its size, whatever else its version holds.
    let size = unsafe { pointer.cast::<u32>().read() };
    if size as usize != size_of::<T>() {
        return Err(wrong_size::<T>(size));
    }
    // SAFETY: the struct is as long as `T`, and the caller's promise is passed on.
    Ok(unsafe { &*pointer })
}

#[cold]
fn wrong_size<T: Sized32>(size: u32) -> Failure {
    let (known, name) = (size_of::<T>(), T::NAME);
    let message = format!(
        "`{name}.struct_size` is {size} and not {known}: set it to sizeof({name}), and compile with the header that belongs to this library"
    );
    Failure::new(smidgen_status::VERSION, message)
}

/// Fills a struct whose size the caller has set.
///
/// # Safety
/// `pointer` is null or points to a struct that begins with its size and that nobody else uses meanwhile.
pub(crate) unsafe fn fill<T: Sized32>(pointer: *mut T, name: &str, value: impl FnOnce() -> Result<T, Failure>) -> Result<(), Failure> {
    // SAFETY: the caller's promise is passed on; the reference ends with this line.
    unsafe { sized(pointer.cast_const(), name) }?;
    let value = value()?;
    // SAFETY: it is as long as `T`, and nobody else uses it.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Puts a new handle where the caller wants it; null where there is none.
pub(crate) fn hand_out<T>(
    target: Option<&mut MaybeUninit<*mut T>>,
    name: &str,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    let target = given(target, name)?;
    target.write(std::ptr::null_mut());
    target.write(Box::into_raw(Box::new(make()?)));
    Ok(())
}

/// Takes a handle back from the caller, whose variable is null afterwards, so that taking it twice does nothing.
///
/// # Safety
/// The variable is null or holds what [`hand_out`] put there, of which nobody keeps a copy in use.
pub(crate) unsafe fn take_back<T>(handle: Option<&mut *mut T>, name: &str) -> Result<Option<Box<T>>, Failure> {
    let handle = std::mem::replace(given(handle, name)?, std::ptr::null_mut());
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise is passed on.
    Ok(Some(unsafe { Box::from_raw(handle) }))
}
