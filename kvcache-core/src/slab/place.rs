//! Where a slab's file lies, and the engine and the lane that it belongs to.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_128;

use super::SlabError;
use super::config::SharedBacking;
use super::lane::Lane;
use super::owner::Owner;
use super::slab_file::SlabName;

pub(super) struct Place {
    pub(super) owner: Owner,
    pub(super) name: SlabName,
    pub(super) path: PathBuf,
    /// `None` for a file that no other engine looks for.
    pub(super) lane: Option<Lane>,
}

impl Place {
    /// The same for all ranks of an engine, whichever comes first. Waits until `deadline` for the lane of an engine that has
    /// ended.
    pub(super) fn take(backing: &SharedBacking, deadline: Instant) -> Result<Place, SlabError> {
        fs::create_dir_all(&backing.directory)
            .map_err(|source| SlabError::Directory { path: backing.directory.clone(), source })?;
        let owner = Owner::of(&backing.engine_id, backing.owner_pid);
        let (lane, namespace) = if backing.lasting {
            let lane = Lane::acquire(&backing.directory, &backing.namespace, &owner, deadline)?;
            (Some(lane), backing.namespace)
        } else {
            // A name of this engine's own, so that it needs no lane among others.
            let text = [&backing.namespace[..], owner.to_text().as_bytes()].concat();
            (None, xxh3_128(&text).to_le_bytes())
        };
        let index = lane.as_ref().map_or(0, Lane::index);
        let name = SlabName { namespace, lane: index, shard: backing.shard, rank: backing.rank };
        let path = backing.directory.join(name.to_string());
        Ok(Place { owner, name, path, lane })
    }
}
