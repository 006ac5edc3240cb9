//! Prints the definition of the `KVCache` resource or, given the folder `deploy`, writes it and all other files that
//! follow from the code there.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use kvcache_operator::generated;

fn main() -> Result<(), Box<dyn Error>> {
    let files = generated::files()?;
    let Some(folder) = env::args_os().nth(1) else {
        let definition = files.iter().find(|(path, _)| path.starts_with("crd/"));
        print!("{}", definition.map_or("", |(_, text)| text));
        return Ok(());
    };
    for (path, text) in files {
        let path = Path::new(&folder).join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        }
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
