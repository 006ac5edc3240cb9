//! Members in a JSON file.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use kvcache_core::ring::RingDocument;

use super::{MemberList, MemberSource, Reading, SourceError};

/// Reads a JSON file whenever it is asked, and parses it when its text is another one.
///
/// The text itself is compared, since a file that is written twice within a tick of the clock keeps its time. Writers
/// should write another file and rename it; a file that is caught half-written is no JSON, counts as a failure and is
/// read again.
///
/// The path is followed anew each time, so that links on it may change: a ConfigMap that is mounted in a pod is a link to
/// a file in a folder that is itself a link, and Kubernetes replaces the latter.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    last: Option<Vec<u8>>,
}

impl FileSource {
    /// The members in the file at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), last: None }
    }

    fn text(&self) -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        // One byte more than is accepted tells a file that is too long from one that just fits.
        File::open(&self.path)?.take(RingDocument::TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        Ok(text)
    }
}

impl MemberSource for FileSource {
    fn read(&mut self) -> Result<Reading, SourceError> {
        let origin = || self.path.display().to_string();
        let text = self.text().map_err(|source| SourceError::File { path: origin(), source })?;
        if self.last.as_ref() == Some(&text) {
            return Ok(Reading::Unchanged);
        }
        let list = MemberList::from_json(&text)
            .map_err(|source| SourceError::Text { origin: format!("members file {}", origin()), source })?;
        self.last = Some(text);
        Ok(Reading::List(list))
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_folder::TestFolder;
    use super::*;

    /// The bytes that the core writes.
    const GOLDEN_RING: &str = include_str!("../../../kvcache-core/src/ring/golden_ring.json");

    #[test]
    fn a_file_is_parsed_when_its_text_changes() {
        let folder = TestFolder::new();
        let path = folder.path().join("members.json");
        let mut source = FileSource::new(&path);
        let error = source.read().unwrap_err().to_string();
        assert!(error.contains("members.json: No such file"), "{error}");

        std::fs::write(&path, r#"{"members":["a:1"]}"#).unwrap();
        assert!(matches!(source.read(), Ok(Reading::List(list)) if list.len() == 1));
        assert_eq!(source.read().unwrap(), Reading::Unchanged);

        // Half a text: an error each time, and the next whole text is a list even if it is the old one.
        std::fs::write(&path, r#"{"members":["a:1"#).unwrap();
        assert!(source.read().unwrap_err().to_string().contains("not a list of members: EOF"));
        assert!(source.read().is_err());
        std::fs::write(&path, r#"{"members":["a:1"]}"#).unwrap();
        assert_eq!(source.read().unwrap(), Reading::Unchanged);

        let next = folder.path().join("members.json.new");
        std::fs::write(&next, r#"{"members":["b:1"]}"#).unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert!(matches!(source.read(), Ok(Reading::List(list)) if list.members()[0].name == "b:1"));

        std::fs::write(&path, vec![b' '; RingDocument::TEXT_BYTES_MAX + 10]).unwrap();
        assert!(source.read().unwrap_err().to_string().contains("too long"));
    }

    /// As a kubelet does it: `ring.json -> ..data/ring.json`, `..data -> ..2026_1`, and another `..data` is renamed over
    /// the first. Kubelets do so for any update, so the file may also be another one with the same text.
    #[test]
    fn a_config_map_that_is_mounted_is_followed_through_its_links() {
        let folder = TestFolder::new();
        let mount = |generation: &str, text: &str| {
            let data = folder.path().join(generation);
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("ring.json"), text).unwrap();
            let link = folder.path().join("..data_tmp");
            std::os::unix::fs::symlink(generation, &link).unwrap();
            std::fs::rename(&link, folder.path().join("..data")).unwrap();
        };
        mount("..2026_1", GOLDEN_RING);
        std::os::unix::fs::symlink("..data/ring.json", folder.path().join("ring.json")).unwrap();
        let mut source = FileSource::new(folder.path().join("ring.json"));
        assert!(matches!(source.read(), Ok(Reading::List(list)) if list.members()[0].name == "kv-0"));
        mount("..2026_2", GOLDEN_RING);
        std::fs::remove_dir_all(folder.path().join("..2026_1")).unwrap();
        assert_eq!(source.read().unwrap(), Reading::Unchanged);
        mount("..2026_3", r#"{"nodes":[],"version":8}"#);
        assert!(matches!(source.read(), Ok(Reading::List(list)) if list.is_empty()));
    }
}
