//! Errors as Python's.

use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

/// A `ValueError` with the error's own text.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
