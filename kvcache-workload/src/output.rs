//! Where a workload is written to.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// A file, or the standard output.
///
/// A file is written under its name with `.partial` behind it and gets its own when it is [finished](Self::finish),
/// so that one that was cut short is never taken for a whole one. A name that ends in `.zst` is compressed: in frames
/// of a few MiB, which every reader of zstd takes for one file.
pub struct Output {
    sink: Sink,
    rename: Option<(PathBuf, PathBuf)>,
}

enum Sink {
    Plain(BufWriter<Box<dyn Write>>),
    Zstd { output: Box<dyn Write>, chunk: Vec<u8> },
}

impl Output {
    /// Opens `path`; `-` is the standard output. What is not a regular file (a pipe, a device) is written as it is.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        let (output, rename): (Box<dyn Write>, _) = if path == Path::new("-") {
            (Box::new(io::stdout()), None)
        } else if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            (Box::new(File::create(path)?), None)
        } else {
            let mut partial = path.as_os_str().to_owned();
            partial.push(".partial");
            (Box::new(File::create(&partial)?), Some((PathBuf::from(partial), path.to_owned())))
        };
        let sink = if path.extension().is_some_and(|extension| extension == "zst") {
            Sink::Zstd { output, chunk: Vec::new() }
        } else {
            Sink::Plain(BufWriter::with_capacity(BUFFER_BYTES, output))
        };
        Ok(Self { sink, rename })
    }

    /// Writes what is left and gives the file its name.
    ///
    /// # Errors
    ///
    /// Those of the file system; the file keeps `.partial` then.
    pub fn finish(mut self) -> io::Result<()> {
        if let Sink::Zstd { output, chunk } = &mut self.sink {
            frame(output, chunk)?;
        }
        self.flush()?;
        match &self.rename {
            Some((partial, path)) => std::fs::rename(partial, path),
            None => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Plain(output) => output.write(bytes),
            Sink::Zstd { output, chunk } => {
                chunk.extend_from_slice(bytes);
                if chunk.len() >= FRAME_BYTES {
                    frame(output, chunk)?;
                }
                Ok(bytes.len())
            }
        }
    }

    /// Writes what is buffered, except for a compressed frame that is not full.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Plain(output) => output.flush(),
            Sink::Zstd { output, .. } => output.flush(),
        }
    }
}

fn frame(output: &mut impl Write, chunk: &mut Vec<u8>) -> io::Result<()> {
    output.write_all(&compress_to_vec(chunk.as_slice(), CompressionLevel::Fastest))?;
    chunk.clear();
    Ok(())
}

const BUFFER_BYTES: usize = 1 << 16;

/// Large enough that starting anew costs no compression to speak of.
const FRAME_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::{ReadOptions, Reader};
    use crate::request::{Content, Piece, Request};
    use crate::writer::{Header, Writer};

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kvcache-workload-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        folder
    }

    #[test]
    fn a_file_is_whole_or_called_partial() {
        let folder = folder("partial");
        let (path, partial) = (folder.join("a.jsonl"), folder.join("a.jsonl.partial"));
        let mut output = Output::create(&path).expect("creates");
        output.write_all(b"first\n").expect("writes");
        assert!(partial.exists() && !path.exists());
        drop(output);
        assert!(partial.exists() && !path.exists(), "not finished");
        Output::create(&path).expect("again").finish().expect("finishes");
        assert!(path.exists() && !partial.exists());
        std::fs::remove_dir_all(folder).expect("removes");
    }

    /// Three frames and a bit.
    #[test]
    fn a_compressed_file_of_many_frames_is_read_back() {
        let folder = folder("zstd");
        let path = folder.join("a.jsonl.zst");
        let requests: Vec<Request> = (0..200_000u64)
            .map(|stream| {
                Request::new(Content::Pieces(vec![Piece { stream: stream * stream, tokens: stream % 97 }]))
            })
            .collect();
        let mut writer =
            Writer::new(Output::create(&path).expect("creates"), &Header::default()).expect("writes");
        requests.iter().for_each(|request| writer.write(request).expect("writes"));
        writer.into_inner().expect("flushes").finish().expect("finishes");
        assert!(path.metadata().expect("it is there").len() < 5_000_000);
        let reader = Reader::open(&path, ReadOptions::default()).expect("opens");
        assert!(reader.map(|request| request.expect("good")).eq(requests));
        std::fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error() {
        assert!(Output::create(Path::new("/nowhere/a.jsonl")).is_err());
    }
}
