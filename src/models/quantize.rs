//! Quantises a transformer or a text encoder into a GGUF file, for `reel models quantize`.

use crate::models;
use crate::models::text;
use crate::models::text::open::{open_text_encoder, text_form};
use crate::platform::device::Quantize;
use crate::platform::files::{AtomicFile, would_replace};
use crate::platform::progress::Progress;
use anyhow::{Result, ensure};
use std::path::Path;

/// Quantises a transformer or a text encoder into a GGUF file.
/// - `path`: a file, or a directory of a checkpoint or of one part; of a checkpoint with both it is the transformer, or the
///   text encoder if `text`. Remarks and progress go to `progress`.
/// - Errors when there is no such part, when nothing in it can be quantised, and when `out` exists and not `force`.
pub fn quantize(path: &Path, text: bool, kind: Quantize, out: &Path, force: bool, progress: &Progress) -> Result<()> {
    ensure!(force || out.symlink_metadata().is_err(), "`{}` exists\n  fix: --force replaces it", out.display());
    ensure!(
        !would_replace(out, path),
        "the output `{}` is what is quantised itself\n  fix: give another name with -o",
        out.display()
    );
    ensure!(
        out.extension().is_some_and(|x| x == "gguf"),
        "`{}` does not end in .gguf\n  fix: -o NAME.gguf",
        out.display()
    );
    ensure!(path.exists(), "there is nothing at `{}`\n  fix: give a file or a directory with weights", path.display());
    let (tensors, form, rules) = match models::transformer(path)?.filter(|_| !text) {
        Some(found) => found,
        None => {
            let (config, tensors) = open_text_encoder(path)?;
            (tensors, text_form(&config), &text::names::QUANTISING)
        }
    };
    tensors.check_form()?;
    let tensors = tensors.quantized(Some(kind.blocks()), rules);
    ensure!(
        tensors.quantized_count() > 0,
        "{}: no matrix in it can be quantised to {}: they are quantised already, or their rows do not divide into blocks of {}\n  fix: use the file as it is",
        tensors.what(),
        kind.name(),
        kind.blocks().values()
    );
    let left = tensors.not_quantized();
    if !left.is_empty() {
        progress.note(&format!("{} matrices stay as they are, for their rows do not divide into blocks", left.len()));
        left.iter().for_each(|name| progress.detail(&format!("not quantised: {name}")));
    }
    let file = AtomicFile::create(out, force)?;
    let mut stage = progress.stage("quantise", tensors.names().count(), "tensors");
    tensors.write_gguf(&file, &form, || stage.advance(1))?;
    stage.finish();
    file.commit()
}
