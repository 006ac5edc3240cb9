//! Views of Python buffers as Rust slices.

use std::ffi::CStr;

use pyo3::buffer::{ElementType, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyAny;

use kvcache_core::BlockKey;

/// A contiguous buffer of a Python object, held for as long as this lives.
pub(crate) struct Bytes {
    buffer: PyUntypedBuffer,
    what: &'static str,
}

impl Bytes {
    /// The buffer of `object`, which must be C-contiguous. Of any element type but Python objects: bytes are bytes.
    pub(crate) fn of(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Self> {
        match PyUntypedBuffer::get(object) {
            // Pointers to objects must not be copied, and above all not be written.
            Ok(buffer) if !buffer.format().to_bytes().contains(&b'O') => {
                contiguous(what, buffer.is_c_contiguous(), buffer.shape(), buffer.strides())?;
                Ok(Self { buffer, what })
            }
            _ => {
                let type_name = object.get_type().name()?;
                Err(PyTypeError::new_err(format!(
                    "{what} is a {type_name}, which exports no buffer of numbers: pass bytes, a memoryview, a NumPy array \
                     or a CPU tensor's .numpy()"
                )))
            }
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.buffer.buf_ptr() as usize
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len_bytes()
    }

    /// The bytes.
    ///
    /// # Safety
    /// Nobody may write the object while the slice is in use. Python cannot promise that: the callers' documentation asks
    /// for it, and a violation can only garble the block that is being written.
    pub(crate) unsafe fn as_slice(&self) -> &[u8] {
        if self.len() == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` bytes at `address` alive while the buffer is held; see above for writers.
        unsafe { std::slice::from_raw_parts(self.address() as *const u8, self.len()) }
    }

    /// The bytes, to be written.
    ///
    /// # Safety
    /// As for [`as_slice`](Self::as_slice), and nobody may read them either.
    #[expect(clippy::mut_from_ref, reason = "the buffer is Python's: exclusiveness is the caller's duty")]
    pub(crate) unsafe fn as_mut_slice(&self) -> PyResult<&mut [u8]> {
        if self.buffer.readonly() {
            return Err(PyValueError::new_err(format!("{} is read-only: pass a writable buffer", self.what)));
        }
        if self.len() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as above, and the exporter says that the buffer is writable.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address() as *mut u8, self.len()) })
    }
}

/// The numbers in a buffer.
///
/// # Safety
/// Nobody may write the object while the slice is in use.
pub(crate) unsafe fn numbers<'a, T: pyo3::buffer::Element>(
    buffer: &'a PyBuffer<T>,
    what: &'static str,
) -> PyResult<&'a [T]> {
    contiguous(what, buffer.is_c_contiguous(), buffer.shape(), buffer.strides())?;
    if buffer.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: `PyBuffer` has checked type, size and alignment; the exporter keeps the items alive while it is held.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.item_count()) })
}

/// Whether the numbers of a buffer are in this machine's byte order. `PyBuffer` itself takes big-endian ones for native.
pub(crate) fn is_native_order(format: &CStr) -> bool {
    let foreign = if cfg!(target_endian = "little") { &b">!"[..] } else { &b"<"[..] };
    format.to_bytes().first().is_none_or(|order| !foreign.contains(order))
}

fn contiguous(what: &str, contiguous: bool, shape: &[usize], strides: &[isize]) -> PyResult<()> {
    if contiguous {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{what} of shape {shape:?} and strides {strides:?} is not C-contiguous: pass numpy.ascontiguousarray({what})"
    )))
}

/// The keys in `object`: a `uint8[n, 16]` buffer, or `16 * n` bytes.
pub(crate) struct Keys(Bytes);

impl Keys {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = Bytes::of(object, "keys")?;
        if !matches!(
            ElementType::from_format(bytes.buffer.format()),
            ElementType::UnsignedInteger { bytes: 1 }
        ) {
            return Err(PyTypeError::new_err("keys are not of type uint8: pass what hash_tokens returned"));
        }
        let shape = bytes.buffer.shape();
        let fits = match shape {
            [] | [_] => bytes.len() % BlockKey::BYTES == 0,
            [_, width] => *width == BlockKey::BYTES,
            _ => false,
        };
        if fits {
            return Ok(Self(bytes));
        }
        Err(PyValueError::new_err(format!(
            "keys of shape {shape:?} are not uint8[n, 16]: pass what hash_tokens returned, or a slice of its rows"
        )))
    }

    /// The keys.
    ///
    /// # Safety
    /// As for [`Bytes::as_slice`].
    pub(crate) unsafe fn as_slice(&self) -> &[BlockKey] {
        // SAFETY: forwarded to the caller; `BlockKey` is 16 bytes of alignment 1, and the length is a multiple of 16.
        unsafe {
            let bytes = self.0.as_slice();
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / BlockKey::BYTES)
        }
    }
}
