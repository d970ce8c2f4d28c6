//! Where weights come from: the catalogue of models, the store of pulled files, files -> tensors, and packing a checkpoint into
//! one file.

pub mod catalogue;
mod forms;
pub mod gguf;
pub mod lora;
pub mod open;
pub mod pack;
pub mod quantize;
pub mod random;
mod scaled;
mod source;
pub mod store;

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A JSON file of a checkpoint.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is not JSON", path.display()))
}

/// The folder `dir/part`. Git without symbolic links leaves a link as a small file that holds its target: such a file is
/// followed too.
pub fn part_folder(dir: &Path, part: &str) -> Option<PathBuf> {
    const LONGEST_LINK: u64 = 4096;
    let path = dir.join(part);
    if path.is_file() && path.metadata().is_ok_and(|m| m.len() <= LONGEST_LINK) {
        let target = std::fs::read_to_string(&path).ok()?;
        return Some(dir.join(target.trim_end())).filter(|target| target.is_dir());
    }
    Some(path).filter(|path| path.is_dir())
}
