//! What a model is put together from, as named.

use crate::job::ranges;
use crate::platform::device::Quantize;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a model is put together from: `--model` and the flags beside it.
#[derive(Clone, Copy, Default)]
pub struct Sources<'a> {
    /// A name of the catalogue, a directory, or a file.
    pub model: &'a str,
    /// A file, a directory or a name of the catalogue, in place of the model's own.
    pub text_encoder: Option<&'a Path>,
    /// A file or a directory.
    pub tokenizer: Option<&'a Path>,
    /// A file or a directory, in place of the model's own.
    pub vae: Option<&'a Path>,
    /// What large matrices become when they are loaded.
    pub quantize: Option<Quantize>,
    pub loras: &'a [Lora],
    /// A folder to keep what was quantised in.
    pub quantize_cache: Option<&'a Path>,
    /// A folder for what is quantised and does not stay in memory, while the program runs.
    pub quantize_scratch: Option<&'a Path>,
}

/// `--lora FILE[:SCALE]`: what to add to the transformer, how strongly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub file: PathBuf,
    pub scale: f64,
}

impl std::str::FromStr for Lora {
    type Err = String;

    /// Reads from the right, so that a file name may hold `:`.
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
