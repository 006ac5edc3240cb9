//! Views of Python buffers as Rust slices.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyAny;

use kvcache_core::BlockKey;

/// A contiguous buffer of a Python object, held for as long as this lives.
pub(crate) struct Bytes {
    buffer: Raw,
    what: &'static str,
}

enum Raw {
    U8(PyBuffer<u8>),
    Other { address: usize, bytes: usize, readonly: bool, _keep: Keep },
}

/// Keeps a buffer of any element type exported.
enum Keep {
    I8(#[expect(dead_code, reason = "held for its drop")] PyBuffer<i8>),
    I16(#[expect(dead_code, reason = "held for its drop")] PyBuffer<i16>),
    U16(#[expect(dead_code, reason = "held for its drop")] PyBuffer<u16>),
    I32(#[expect(dead_code, reason = "held for its drop")] PyBuffer<i32>),
    U32(#[expect(dead_code, reason = "held for its drop")] PyBuffer<u32>),
    I64(#[expect(dead_code, reason = "held for its drop")] PyBuffer<i64>),
    U64(#[expect(dead_code, reason = "held for its drop")] PyBuffer<u64>),
    F32(#[expect(dead_code, reason = "held for its drop")] PyBuffer<f32>),
    F64(#[expect(dead_code, reason = "held for its drop")] PyBuffer<f64>),
}

impl Bytes {
    /// The buffer of `object`, which must be C-contiguous.
    pub(crate) fn of(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Self> {
        if let Ok(buffer) = PyBuffer::<u8>::get(object) {
            contiguous(what, buffer.is_c_contiguous(), buffer.shape(), buffer.strides())?;
            return Ok(Self { buffer: Raw::U8(buffer), what });
        }
        macro_rules! try_as {
            ($($type:ty => $variant:ident),*) => {
                $(if let Ok(buffer) = PyBuffer::<$type>::get(object) {
                    contiguous(what, buffer.is_c_contiguous(), buffer.shape(), buffer.strides())?;
                    let (address, bytes) = (buffer.buf_ptr() as usize, buffer.len_bytes());
                    let readonly = buffer.readonly();
                    return Ok(Self { buffer: Raw::Other { address, bytes, readonly, _keep: Keep::$variant(buffer) }, what });
                })*
            };
        }
        try_as!(i8 => I8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);
        let type_name = object.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "{what} is a {type_name}, which exports no buffer of numbers: pass bytes, a memoryview, a NumPy array or a \
             CPU tensor's .numpy()"
        )))
    }

    pub(crate) fn address(&self) -> usize {
        match &self.buffer {
            Raw::U8(buffer) => buffer.buf_ptr() as usize,
            Raw::Other { address, .. } => *address,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.buffer {
            Raw::U8(buffer) => buffer.len_bytes(),
            Raw::Other { bytes, .. } => *bytes,
        }
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
        let readonly = match &self.buffer {
            Raw::U8(buffer) => buffer.readonly(),
            Raw::Other { readonly, .. } => *readonly,
        };
        if readonly {
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
        if let Raw::U8(buffer) = &bytes.buffer {
            let shape = buffer.shape();
            let fits = match shape {
                [] | [_] => bytes.len() % BlockKey::BYTES == 0,
                [_, width] => *width == BlockKey::BYTES,
                _ => false,
            };
            if fits {
                return Ok(Self(bytes));
            }
            return Err(PyValueError::new_err(format!(
                "keys of shape {shape:?} are not uint8[n, 16]: pass what hash_tokens returned, or a slice of its rows"
            )));
        }
        Err(PyTypeError::new_err("keys are not of type uint8: pass what hash_tokens returned"))
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
