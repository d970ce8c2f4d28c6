//! A diffusers directory -> one safetensors file with everything in it, as the embedded models are.

use crate::job::sources::Sources;
use crate::models::bundle::Checkpoint;
use crate::models::text::open::TEXT_PREFIX;
use crate::platform::files::{AtomicFile, would_replace};
use crate::weights::entry::{Raw, Type};
use crate::weights::{part_folder, read_json};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// Packs the checkpoint in `dir` into `out`: tensors in Lightricks' naming, configurations, tokenizer and `name` in the header.
/// - The same directory gives the same bytes. Errors when `dir` is no whole checkpoint or `out` exists and not `force`.
pub fn pack(dir: &Path, out: &Path, name: Option<&str>, force: bool) -> Result<()> {
    ensure!(force || out.symlink_metadata().is_err(), "`{}` exists\n  fix: --force replaces it", out.display());
    ensure!(
        !would_replace(out, dir),
        "the output `{}` is a part of the checkpoint itself\n  fix: give another name with -o",
        out.display()
    );
    let model = dir.to_str().with_context(|| format!("`{}` is not valid UTF-8", dir.display()))?;
    ensure!(dir.is_dir(), "`{model}` is not a directory\n  fix: give a checkpoint in diffusers layout");
    let checkpoint = Checkpoint::open(&Sources { model, ..Default::default() })?;
    let config = &checkpoint.config;
    let mut tensors = vec![];
    tensors.extend(checkpoint.transformer.iter().map(|(name, raw)| (config.transformer_name_in_file(name), raw)));
    tensors.extend(checkpoint.vae.iter().map(|(name, raw)| (config.vae_name_in_file(name), raw)));
    tensors.extend(checkpoint.text.1.iter().map(|(name, raw)| (format!("{TEXT_PREFIX}{name}"), raw)));
    // wide types first, so that every tensor lies at a multiple of its element's size
    let bits = |raw: &Raw| match raw.dtype {
        Type::Plain(dtype) => dtype.bitsize(),
        Type::QuantType(_) => 0,
    };
    tensors.sort_by_key(|(name, raw)| (std::cmp::Reverse(bits(raw)), name.clone()));

    let part = |folder: &str, file: &str| {
        let folder = part_folder(dir, folder).with_context(|| format!("`{model}` has no folder `{folder}`"))?;
        read_json(&folder.join(file))
    };
    let config = json!({
        "transformer": part("transformer", "config.json")?,
        "vae": part("vae", "config.json")?,
        "scheduler": part("scheduler", "scheduler_config.json")?,
        "text_encoder": part("text_encoder", "config.json")?,
    });
    let mut metadata = Map::new();
    if let Some(name) = name {
        metadata.insert("name".into(), name.into());
    }
    metadata.insert("config".into(), config.to_string().into());
    metadata.insert("tokenizer".into(), checkpoint.tokenizer.to_json()?.into());
    // written here and not by the safetensors crate, whose order of the metadata changes from run to run
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.into());
    let mut end = 0;
    for (name, raw) in &tensors {
        let offsets = [end, end + raw.bytes.len()];
        let (Type::Plain(dtype), None) = (raw.dtype, raw.scales) else {
            bail!(
                "`{model}`: `{name}` is quantised, and only plain numbers are packed\n  fix: pack the checkpoint in bf16"
            )
        };
        header.insert(name.clone(), json!({"dtype": dtype, "shape": raw.shape, "data_offsets": offsets}));
        end += raw.bytes.len();
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let file = AtomicFile::create(out, force)?;
    let write = || -> Result<()> {
        let mut to = file.writer()?;
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(&header)?;
        tensors.iter().try_for_each(|(_, raw)| to.write_all(raw.bytes))?;
        Ok(to.flush()?)
    };
    write().with_context(|| file.failed())?;
    file.commit()
}
