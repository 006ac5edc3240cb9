//! Snapshots as dictionaries.

use kvcache_assembly::named_stats::Number;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Every number by its key.
pub(crate) fn dict<'py>(
    py: Python<'py>,
    numbers: impl IntoIterator<Item = Number>,
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    for number in numbers {
        out.set_item(number.key(), number.value)?;
    }
    Ok(out)
}
