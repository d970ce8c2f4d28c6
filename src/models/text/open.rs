//! A text encoder, opened: by itself, or inside a single file with more in it.

use crate::models::parts::{PartNames, header_config, part};
use crate::models::text::names;
use crate::models::text::t5::T5Config;
use crate::weights::open::{Tensors, weight_files};
use crate::weights::rules::GgufForm;
use crate::weights::{part_folder, read_json};
use anyhow::{Result, ensure};
use std::path::Path;

/// Where the text encoder lies in a single file of reel.
pub const TEXT_PREFIX: &str = "text_encoder.";

const TEXT_NAMES: PartNames = PartNames {
    known: [TEXT_PREFIX, "text_encoders.t5xxl.transformer."],
    anchors: [
        "encoder.block.0.layer.0.layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "enc.blk.0.attn_norm.weight",
    ],
};

/// The text encoder of a single file, with transformers' names; `None` where it has none.
pub fn text_of(tensors: &Tensors) -> Option<Tensors> {
    let text = part(tensors, TEXT_NAMES.prefix(tensors.names())?);
    Some(text.renamed(|name| Some(names::from_llama(name))))
}

/// `--text-encoder`, or the folder of that name in a checkpoint.
pub fn open_text_encoder(path: &Path) -> Result<(T5Config, Tensors)> {
    ensure!(
        path.exists(),
        "there is no text encoder at `{}`: no such file or directory\n  fix: give --text-encoder a .safetensors or .gguf file, a directory, or a name of `reel models list`",
        path.display()
    );
    let nested = part_folder(path, "text_encoder"); // a whole checkpoint was given
    let dir = nested.as_deref().unwrap_or(path);
    let files = if dir.is_dir() { weight_files(dir)? } else { vec![path.to_path_buf()] };
    let mut tensors = Tensors::open(&files)?;
    let mut own = header_config(&tensors)?;
    if let Some(text) = text_of(&tensors) {
        // a single file with everything says more than the text encoder's configuration
        own = own.map(|config| if config.get("d_model").is_some() { config } else { config["text_encoder"].clone() });
        tensors = text;
    }
    let config = dir.join("config.json");
    let config = if dir.is_dir() && config.is_file() {
        T5Config::parse(&read_json(&config)?, &format!("`{}`", config.display()))?
    } else if let Some(config) = own.filter(|config| config.get("d_model").is_some()) {
        T5Config::parse(&config, &format!("{}: `config` in its header", tensors.what()))?
    } else {
        T5Config::from_shapes(|name| tensors.shape(name).map(<[usize]>::to_vec), tensors.what())?
    };
    Ok((config, tensors))
}

/// How a text encoder is written to a GGUF file: as llama.cpp has it.
pub fn text_form(config: &T5Config) -> GgufForm {
    GgufForm {
        architecture: "t5encoder",
        config: config.to_json().to_string(),
        rename: names::to_llama,
        back: names::from_llama,
    }
}
