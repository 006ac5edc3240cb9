//! The committed header is what its sources make. `KVC_WRITE_HEADER=1` writes it anew.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// In the order in which a reader wants them.
const SOURCES: &[&str] = &[
    "version",
    "status",
    "logging",
    "config",
    "cache",
    "segments",
    "device",
    "in_place",
    "async_calls",
    "statistics",
    "directory",
    "store",
];

fn generated() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).expect("cbindgen.toml is read");
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |builder, name| {
        builder.with_src(here.join("src").join(name).with_extension("rs"))
    });
    let mut header = Vec::new();
    builder.generate().expect("the sources are understood").write(&mut header);
    let header = String::from_utf8(header).expect("the header is text");
    // What the caller must see to, in C's words.
    header.replace(" * # Safety\n", " * The caller's duties:\n").trim_end().to_owned() + "\n"
}

#[test]
fn the_committed_header_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/kvcache.h");
    let header = generated();
    if std::env::var_os("KVC_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).expect("the header is written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let first = header.lines().zip(committed.lines()).position(|(new, old)| new != old);
    assert!(
        header == committed,
        "include/kvcache.h is not what the sources make (first difference in line {:?}): run \
         KVC_WRITE_HEADER=1 cargo test -p kvcache-capi --test header",
        first.map_or(header.lines().count().min(committed.lines().count()) + 1, |line| line + 1)
    );
}

/// In C and C++, and also where two headers of a program include it.
#[test]
fn the_header_compiles_twice_in_one_file() {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include");
    for language in [&["-x", "c", "-std=c99"], &["-x", "c++", "-std=c++11"]] {
        let mut compiler = Command::new("cc")
            .args(["-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(&include)
            .args(language)
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .expect("a C compiler, which Rust links with, is there");
        let text = "#include <kvcache.h>\n#include <kvcache.h>\nint use(void);\n\
                    int use(void) { kvc_config config = kvc_config_init(); return (int)config.abi_version; }\n";
        let mut stdin = compiler.stdin.take().expect("it was piped");
        stdin.write_all(text.as_bytes()).expect("it reads");
        drop(stdin);
        assert!(compiler.wait().expect("it ends").success(), "{language:?}");
    }
}

/// Every file with exported functions is in the header.
#[test]
fn no_source_is_forgotten() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let header = generated();
    let mut count = 0;
    for entry in std::fs::read_dir(sources).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains("extern \"C\" fn kvc_")) {
            let name = line.split("fn ").nth(1).and_then(|rest| rest.split('(').next()).unwrap_or_default();
            assert!(
                header.contains(&format!("{name}(")),
                "{name} of {} is not in the header",
                path.display()
            );
            count += 1;
        }
    }
    assert!(count >= 15, "only {count} functions were found");
}
