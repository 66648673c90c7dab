//! Writes the inputs that the fuzz targets begin with, to a folder for each target: `cargo run --example seeds -- FOLDER`. `cargo xtask fuzz`
//! goes on from those that are kept, so this is for a target whose form of input has changed.

use std::{env, fs, io, path::PathBuf};

use redirect_common::testkit::properties::TARGETS;

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: seeds FOLDER"))?);
    for target in TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed)?;
        }
    }
    Ok(())
}
