//! Whether a folder for slabs is what was meant: shared memory, and not a misspelt name on a disk.

use std::path::Path;

use kvcache_core::slab::is_in_memory;

use crate::Error;

/// What the user should know of the folder, if anything.
///
/// One that does not exist is made in shared memory, which is empty after each start of the machine. Anywhere else its name is
/// more often misspelt than meant.
pub(crate) fn check(folder: &Path) -> Result<Option<String>, Error> {
    // Where the system does not answer, it has more to say when the slab is opened.
    if is_in_memory(folder).unwrap_or(true) {
        return Ok(None);
    }
    if !folder.exists() {
        return Err(Error::NoSlabFolder(folder.to_owned()));
    }
    Ok(folder.is_dir().then(|| {
        format!(
            "slab_path {} is not in shared memory (tmpfs): its disk gets every block that is stored, which is slower and wears \
             it out; set slab_path to a directory such as /dev/shm",
            folder.display()
        )
    }))
}
