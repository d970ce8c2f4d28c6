//! Files of weights: safetensors and GGUF to tensors by name, mapped; quantising, LoRAs, the forms that other programs write.

mod check;
pub mod config;
mod copies;
mod damage;
pub mod entry;
mod forms;
pub mod gguf;
mod lora;
pub mod open;
mod quantize;
pub mod rules;
mod scaled;
mod source;

use crate::platform::files::read_small_text;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Bytes of a JSON file, at most: the largest, an index of shards, has less than one MB.
const LARGEST_JSON: u64 = 32 << 20;

/// A JSON file of a checkpoint.
/// - Errors when it is no plain file, or far larger than any.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = read_small_text(path, LARGEST_JSON)?;
    config::json(text.as_bytes()).with_context(|| format!("`{}` is not JSON", path.display()))
}

/// The folder `dir/part`. Git without symbolic links leaves a link as a small file that holds its target: such a file is
/// followed too.
pub fn part_folder(dir: &Path, part: &str) -> Option<PathBuf> {
    const LONGEST_LINK: u64 = 4096;
    let path = dir.join(part);
    if path.is_file() {
        let target = read_small_text(&path, LONGEST_LINK).ok()?;
        return Some(dir.join(target.trim_end())).filter(|target| target.is_dir());
    }
    Some(path).filter(|path| path.is_dir())
}
