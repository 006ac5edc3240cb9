//! Verbs of real devices, through libibverbs.

mod context;
mod queue_pair;
mod region;

use std::io;
use std::sync::Arc;

use super::error::{Error, Unavailable};
use super::opened_port::Port;
use super::port::DeviceInfo;
use super::selection::{PortWish, select};
use super::sys::Library;
use context::{Context, DeviceList};

/// The RDMA devices of this machine.
#[derive(Clone)]
pub struct Rdma {
    library: &'static Library,
    devices: Vec<DeviceInfo>,
}

impl Rdma {
    /// Opens the library and asks every device what it is. Milliseconds; devices are closed again.
    ///
    /// # Errors
    /// There is no library or no device that answers.
    pub fn load() -> Result<Rdma, Unavailable> {
        let library = Library::get()?;
        let list = DeviceList::new(library)?;
        // A device that does not answer is as good as none: others may work.
        let devices: Vec<DeviceInfo> =
            list.names().filter_map(|name| Context::open(library, &list, &name).ok()?.info().ok()).collect();
        if devices.is_empty() {
            return Err(Unavailable::NoDevices);
        }
        Ok(Rdma { library, devices })
    }

    /// The devices, as they were when this was loaded.
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.devices
    }

    /// Opens the port that fits a wish.
    ///
    /// # Errors
    /// [`Error::Selection`] if none does, [`Error::Verb`] if it cannot be opened.
    pub fn open(&self, wish: &PortWish) -> Result<Port, Error> {
        let selection = select(&self.devices, wish)?;
        let list = DeviceList::new(self.library)?;
        let context = Context::open(self.library, &list, &selection.device)?;
        Ok(Port::new(Arc::new(context::OpenedPort::new(Arc::new(context), &selection)?)))
    }
}

impl std::fmt::Debug for Rdma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.devices).finish()
    }
}

fn verb_error(verb: &'static str, subject: impl Into<String>, source: io::Error) -> Error {
    Error::Verb { verb, subject: subject.into(), source }
}

/// For verbs that return null and set `errno`.
fn errno_error(verb: &'static str, subject: impl Into<String>) -> Error {
    verb_error(verb, subject, io::Error::last_os_error())
}

/// For verbs that return an error number, or -1 and set `errno`.
fn check(verb: &'static str, subject: impl Fn() -> String, status: i32) -> Result<(), Error> {
    match status {
        0 => Ok(()),
        -1 => Err(errno_error(verb, subject())),
        code => Err(verb_error(verb, subject(), io::Error::from_raw_os_error(code.abs()))),
    }
}
