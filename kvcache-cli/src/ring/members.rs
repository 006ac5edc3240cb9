//! Members as the command line names them.

use std::time::Duration;

use kvcache_core::ring::{RangeFaults, SlotTable};
use kvcache_rdma::members::{
    MemberList, MemberSnapshot, Members, MembersError, OpenError, PlacementSource, RemoteUrl, RemoteUrlError,
    ServerAddress, SourceError,
};

use super::text::{self, ConfigMapError};

/// The name that a member has on the ring: that of an address is written in one way only.
pub(super) fn named(text: &str) -> Result<String, FromError> {
    if text.contains("://") {
        return Err(FromError::UrlAsMember { text: text.to_owned() });
    }
    Ok(text.parse::<ServerAddress>().map_or_else(|_| text.to_owned(), |address| address.to_string()))
}

/// The table of the members in a file, from the standard input or behind a URL, and what was repaired in published ranges.
pub(super) fn read(from: &str, published: bool) -> Result<(SlotTable, Option<RangeFaults>), FromError> {
    let mut placement = if published { PlacementSource::Published } else { PlacementSource::Computed };
    let list = if from.contains("://") {
        let url: RemoteUrl = from.parse()?;
        if url.placement == PlacementSource::Published {
            placement = PlacementSource::Published;
        }
        behind_url(&url)?
    } else {
        in_file(from)?
    };
    if placement == PlacementSource::Published && list.ranges().is_none() {
        return Err(FromError::NoRanges { from: from.to_owned() });
    }
    let snapshot = MemberSnapshot::new(1, list, placement)?;
    let faults = (placement == PlacementSource::Published).then(|| snapshot.range_faults());
    let table = snapshot.table().cloned().ok_or_else(|| FromError::Nobody { from: without_login(from) })?;
    Ok((table, faults))
}

fn in_file(from: &str) -> Result<MemberList, FromError> {
    let path = || if from == text::STDIN { "from the standard input".to_owned() } else { from.to_owned() };
    let read = text::read(from).map_err(|source| SourceError::File { path: path(), source })?;
    let ring = text::unwrapped(read).map_err(|source| FromError::ConfigMap { from: path(), source })?;
    Ok(MemberList::from_json(&ring)
        .map_err(|source| SourceError::Text { origin: format!("members file {}", path()), source })?)
}

fn behind_url(url: &RemoteUrl) -> Result<MemberList, FromError> {
    let members = Members::open(url, u64::from(std::process::id()))?;
    members.wait_until(PATIENCE, |status| status.generation > 0 || status.failures > 0);
    let status = members.status();
    match status.last_error {
        Some(error) => Err(FromError::Source(error)),
        None if status.generation == 0 => Err(FromError::Slow { url: url.to_string() }),
        None => Ok(members.current().list().clone()),
    }
}

/// A message must hold no password.
fn without_login(from: &str) -> String {
    match from.parse::<RemoteUrl>() {
        Ok(url) => url.to_string(),
        Err(_) => from.to_owned(),
    }
}

/// Why members cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FromError {
    #[error("{text:?} is a URL, not a member: write --from with it")]
    UrlAsMember { text: String },
    #[error("--from: {0}")]
    Url(#[from] RemoteUrlError),
    #[error("--from: {0}")]
    File(#[from] SourceError),
    #[error("--from: members file {from}: {source}")]
    ConfigMap { from: String, source: ConfigMapError },
    #[error("--from: {0}")]
    Source(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Members(#[from] MembersError),
    #[error("--from {url}: no answer after {} s", PATIENCE.as_secs())]
    Slow { url: String },
    #[error("--from {from}: the list of members is empty, so that there is no ring: every block is a miss")]
    Nobody { from: String },
    #[error("{from} publishes no ranges of slots: leave --published out")]
    NoRanges { from: String },
}

/// Longer than a reading may take.
const PATIENCE: Duration = Duration::from_secs(10);
