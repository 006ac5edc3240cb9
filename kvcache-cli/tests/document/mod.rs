//! The commands that a document shows, run as its reader would.

use std::path::Path;
use std::process::{Command, Output};

/// Runs every block of shell commands in `docs/NAME`, one after the other in `folder`, with the built `kvcache` in front on
/// the path. `adapt` may change a block, and the environment of its shell.
///
/// Returns each block with what it said.
///
/// # Panics
///
/// Where a block fails, or the document has none.
pub(crate) fn run(
    name: &str,
    folder: &Path,
    adapt: impl Fn(&str, &mut Command) -> String,
) -> Vec<(String, Output)> {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(path).expect("the document");
    let binaries = Path::new(env!("CARGO_BIN_EXE_kvcache")).parent().expect("a folder");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
    let blocks = document.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let outputs: Vec<(String, Output)> = blocks
        .map(|block| {
            let mut bash = Command::new("bash");
            bash.current_dir(folder).env("PATH", &path);
            let block = adapt(block, &mut bash);
            let output = bash.args(["-euo", "pipefail", "-c", &block]).output().expect("bash runs");
            assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
            (block, output)
        })
        .collect();
    assert!(!outputs.is_empty(), "{name} has examples");
    outputs
}
