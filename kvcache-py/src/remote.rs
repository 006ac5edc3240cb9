//! Where L2 is and how it is used.

use std::path::PathBuf;

use kvcache_assembly::RemoteSettings;
use pyo3::prelude::*;

use crate::error::value_error;

/// L2 as both halves of the connector are told of it. Each connects for itself, from its own process.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct Remote(pub(crate) kvcache_assembly::Remote);

#[pymethods]
impl Remote {
    #[new]
    #[pyo3(signature = (*, url, ingestion="all", replicas=1, token_file=None, tls_ca=None, tls_name=None, shared_memory=true, timeout_s=2.0,
                        fetch_wait_s=2.0, presence_wait_s=0.05, in_flight=32))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        url: String,
        ingestion: &str,
        replicas: usize,
        token_file: Option<PathBuf>,
        tls_ca: Option<PathBuf>,
        tls_name: Option<String>,
        shared_memory: bool,
        timeout_s: f64,
        fetch_wait_s: f64,
        presence_wait_s: f64,
        in_flight: usize,
    ) -> PyResult<Self> {
        let settings = RemoteSettings {
            url,
            ingestion: ingestion.to_owned(),
            replicas,
            token_file,
            tls_ca,
            tls_name,
            shared_memory,
            timeout_s,
            fetch_wait_s,
            presence_wait_s,
            in_flight,
        };
        Ok(Self(py.detach(|| settings.open()).map_err(value_error)?))
    }

    /// What is wrong now with the list of members and with the connections to them, one line each. May take a
    /// millisecond: not for the engine's thread.
    fn problems(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.0.problems())
    }
}
