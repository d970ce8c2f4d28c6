//! The flags that name a model's files.

use crate::job::ranges;
use crate::platform::device::Quantize;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where a model's parts come from: `--model` and the flags that replace or modify parts of it.
#[derive(Clone, Copy, Default)]
pub struct Sources<'a> {
    /// A catalogue name, a directory or a file.
    pub model: &'a str,
    /// A catalogue name, a directory or a file, in place of the model's own.
    pub text_encoder: Option<&'a Path>,
    /// A file or a directory.
    pub tokenizer: Option<&'a Path>,
    /// A file or a directory, in place of the model's own.
    pub vae: Option<&'a Path>,
    /// Type that large matrices are quantised to on loading.
    pub quantize: Option<Quantize>,
    pub loras: &'a [Lora],
    /// Folder that keeps quantised weights for later runs.
    pub quantize_cache: Option<&'a Path>,
    /// Folder for quantised weights that do not stay in memory; its files last as long as the run.
    pub quantize_scratch: Option<&'a Path>,
}

/// `--lora FILE[:SCALE]`: a LoRA of the transformer and its scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub file: PathBuf,
    pub scale: f64,
}

impl std::str::FromStr for Lora {
    type Err = String;

    /// Parses from the right, so that a file name may contain `:`.
    fn from_str(text: &str) -> Result<Self, String> {
        let scaled = text.rsplit_once(':').and_then(|(file, scale)| Some((file, scale.parse::<f64>().ok()?)));
        let (file, scale) = scaled.unwrap_or((text, 1.0));
        if file.is_empty() {
            return Err("expected FILE or FILE:SCALE, such as style.safetensors:0.8".to_string());
        }
        ranges::check("lora", scale).map_err(|e| format!("scale {scale}: {e}"))?;
        Ok(Self { file: file.into(), scale })
    }
}
