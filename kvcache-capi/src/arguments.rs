//! What callers pass, checked. A leaf: every pointer of a caller is followed here and nowhere else.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use kvcache_core::BlockKey;

use crate::status::Failure;
use crate::status::kvc_status::{KVC_BUFFER_TOO_SMALL, KVC_NULL_ARGUMENT, KVC_VERSION_MISMATCH};

fn null(what: &str) -> Failure {
    Failure::new(KVC_NULL_ARGUMENT, format!("{what} is NULL"))
}

/// A place for one answer. Written only when the call has succeeded.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    /// `place` is NULL or writable for a `T` until the call returns.
    pub(crate) unsafe fn of(what: &str, place: *mut T) -> Result<Self, Failure> {
        let place = NonNull::new(place).ok_or_else(|| null(what))?;
        if !place.is_aligned() {
            let text = format!("{what} is {place:p}, which is not aligned to {} bytes", align_of::<T>());
            return Err(Failure::argument(text));
        }
        Ok(Self(place))
    }

    pub(crate) fn write(self, value: T) {
        // SAFETY: writable by the caller's promise to `of`, not NULL, aligned.
        unsafe { self.0.write(value) }
    }
}

/// `count` items at `start`.
///
/// # Safety
/// `start` is NULL or `count` initialised items lie there, which nobody changes before the call returns.
pub(crate) unsafe fn slice<'a, T>(what: &str, start: *const T, count: usize) -> Result<&'a [T], Failure> {
    check_range(what, start, count)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: not NULL, aligned and of a size that exists; readable and unchanged by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(start, count) })
}

/// A number that need not be there; `None` for NULL.
///
/// # Safety
/// NULL or readable.
pub(crate) unsafe fn optional<T: Copy>(what: &str, place: *const T) -> Result<Option<T>, Failure> {
    // SAFETY: the caller's promise.
    Ok(unsafe { slice(what, place, usize::from(!place.is_null())) }?.first().copied())
}

/// `count` items at `start`, to be written.
///
/// # Safety
/// `start` is NULL or `count` items can be written there, which nobody else uses before the call returns.
pub(crate) unsafe fn slice_mut<'a, T: Copy>(
    what: &str,
    start: *mut T,
    count: usize,
) -> Result<&'a mut [T], Failure> {
    check_range(what, start, count)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, aligned and of a size that exists; ours alone by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(start, count) })
}

fn check_range<T>(what: &str, start: *const T, count: usize) -> Result<(), Failure> {
    if count == 0 {
        return Ok(());
    }
    if start.is_null() {
        return Err(null(what));
    }
    if !start.is_aligned() {
        let text = format!("{what} is {start:p}, which is not aligned to {} bytes", align_of::<T>());
        return Err(Failure::argument(text));
    }
    let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
    if bytes.and_then(|bytes| start.addr().checked_add(bytes)).is_none() {
        return Err(Failure::argument(format!("{what} has {count} items, more than memory can hold")));
    }
    Ok(())
}

/// The keys of `blocks` blocks, 16 bytes each.
///
/// # Safety
/// As [`slice`] for `16 * blocks` bytes.
pub(crate) unsafe fn keys<'a>(keys: *const u8, blocks: usize) -> Result<&'a [BlockKey], Failure> {
    // SAFETY: a key is 16 bytes without alignment; the rest is the caller's promise.
    unsafe { slice("keys", keys.cast::<BlockKey>(), blocks) }
}

/// Bytes to be read.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn bytes<'a>(what: &str, start: *const c_void, count: usize) -> Result<&'a [u8], Failure> {
    // SAFETY: the caller's promise.
    unsafe { slice(what, start.cast::<u8>(), count) }
}

/// Bytes to be written.
///
/// # Safety
/// As [`slice_mut`].
pub(crate) unsafe fn bytes_mut<'a>(
    what: &str,
    start: *mut c_void,
    count: usize,
) -> Result<&'a mut [u8], Failure> {
    // SAFETY: the caller's promise.
    unsafe { slice_mut(what, start.cast::<u8>(), count) }
}

/// A text; `None` for NULL.
///
/// # Safety
/// NULL, or a string that ends with a NUL and is not changed before the call returns.
pub(crate) unsafe fn optional_text<'a>(what: &str, text: *const c_char) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let text = format!("{what} is not UTF-8 from byte {} on", error.valid_up_to());
            Err(Failure::argument(text))
        }
    }
}

/// A text that has to be there.
///
/// # Safety
/// As [`optional_text`].
pub(crate) unsafe fn text<'a>(what: &str, text: *const c_char) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    unsafe { optional_text(what, text) }?.ok_or_else(|| null(what))
}

/// A buffer of the caller for an answer whose length it cannot know.
///
/// Without a buffer the caller asks for the length alone. One that is too small costs nothing: the length is said, and the
/// answer can be asked for again.
pub(crate) struct Buffer<T> {
    start: *mut T,
    count: NonNull<usize>,
}

impl<T: Copy> Buffer<T> {
    /// # Safety
    /// `count` is NULL or a number that can be read and written; `start` is NULL or as many items can be written there.
    pub(crate) unsafe fn of(start: *mut T, count: *mut usize) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let Out(count) = unsafe { Out::of("the place of the buffer's size", count) }?;
        if !start.is_null() {
            // SAFETY: readable by the caller's promise.
            check_range("the buffer", start, unsafe { count.read() })?;
        }
        Ok(Self { start, count })
    }

    /// Whether only the length is asked for.
    pub(crate) fn asks_for_length(&self) -> bool {
        self.start.is_null()
    }

    /// Answers with items.
    pub(crate) fn write(self, answer: &[T]) -> Result<(), Failure> {
        // SAFETY: readable and writable by the caller's promise to `of`.
        let room = unsafe { self.count.replace(answer.len()) };
        if self.start.is_null() {
            return Ok(());
        }
        if room < answer.len() {
            let text = format!(
                "the buffer has room for {room} and {} are needed: pass one of that size",
                answer.len()
            );
            return Err(Failure::new(KVC_BUFFER_TOO_SMALL, text));
        }
        // SAFETY: `room` items are writable by the caller's promise to `of`, no fewer than are written, and they are not ours.
        unsafe { self.start.copy_from_nonoverlapping(answer.as_ptr(), answer.len()) };
        Ok(())
    }
}

impl Buffer<c_char> {
    /// Answers with a text and a NUL.
    pub(crate) fn write_text(self, text: &str) -> Result<(), Failure> {
        let text: Vec<c_char> = text.bytes().chain([0]).map(|byte| byte as c_char).collect();
        self.write(&text)
    }
}

impl Buffer<u8> {
    /// # Safety
    /// As [`Buffer::of`], in bytes.
    pub(crate) unsafe fn of_bytes(start: *mut c_void, bytes: *mut usize) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        unsafe { Self::of(start.cast(), bytes) }
    }
}

/// A structure of the header that may grow: its first field says its size in the caller's header.
///
/// # Safety
/// Plain numbers and pointers only, for which all bits zero are a value; the first field is `struct_size: usize`.
pub(crate) unsafe trait Growing: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// Its size in the first header that had it.
    const FIRST_BYTES: usize;
}

/// Reads a structure that may be longer or shorter than this library knows it. What a shorter one lacks is zero; what a
/// longer one has more must be zero, or the caller wants something that this library cannot do.
///
/// # Safety
/// NULL, or as many bytes are readable as the first field says.
pub(crate) unsafe fn growing<T: Growing>(what: &str, structure: *const T) -> Result<T, Failure> {
    let name = T::NAME;
    // SAFETY: the caller's promise; at least the first field is there.
    let [struct_size] = (unsafe { slice(what, structure.cast::<usize>(), 1) })? else {
        return Err(null(what));
    };
    let struct_size = *struct_size;
    if struct_size < T::FIRST_BYTES || struct_size > 1 << 16 {
        return Err(Failure::argument(format!(
            "{what}->struct_size is {struct_size}, and no {name} has that size: set it to sizeof({name}), as its initialiser does"
        )));
    }
    // SAFETY: the caller's promise; bytes have no alignment.
    let given = unsafe { slice(what, structure.cast::<u8>(), struct_size) }?;
    let known = given.len().min(size_of::<T>());
    if given[known..].iter().any(|byte| *byte != 0) {
        return Err(Failure::new(
            KVC_VERSION_MISMATCH,
            format!(
                "{what} uses fields of {name} that this library, {}, does not have: install a library as new as the header",
                env!("CARGO_PKG_VERSION")
            ),
        ));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are in both, which do not overlap; what is left is zero, a value by the promise of `Growing`, and
    // so are numbers and pointers of any bits.
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(given.as_ptr(), known);
        Ok(value.assume_init())
    }
}

/// Reads a list of such structures, all as long as the first one says.
///
/// # Safety
/// NULL, or `count` structures of the size that the first field of the first one says.
pub(crate) unsafe fn growing_list<T: Growing>(
    what: &str,
    first: *const T,
    count: usize,
) -> Result<Vec<T>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's promise.
    unsafe { growing(what, first) }?;
    // SAFETY: the caller's promise; `growing` has looked at it.
    let struct_size = unsafe { first.cast::<usize>().read() };
    let bytes = count.saturating_mul(struct_size);
    // SAFETY: the caller's promise.
    let all = unsafe { slice(what, first.cast::<u8>(), bytes) }?;
    all.chunks_exact(struct_size)
        .enumerate()
        .map(|(position, one)| {
            // SAFETY: a structure lies there, which has a first field and is aligned as far as the first one and its size are.
            let found = unsafe { one.as_ptr().cast::<usize>().read_unaligned() };
            if found != struct_size {
                return Err(Failure::argument(format!(
                    "{what}[{position}].struct_size is {found} and that of the first one {struct_size}: all must be of one size"
                )));
            }
            // SAFETY: the caller's promise.
            unsafe { growing(&format!("{what}[{position}]"), one.as_ptr().cast()) }
        })
        .collect()
}
