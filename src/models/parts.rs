//! The parts that a checkpoint is opened into; and of a single file, which of its tensors are whose, and the configuration in its
//! header.

use crate::models::text::t5::T5Config;
use crate::models::text::tokenizer::Tokenizer;
use crate::weights::config;
use crate::weights::open::Tensors;
use anyhow::{Context, Result};
use serde_json::Value;

/// A checkpoint's parts before they are put together.
/// - `C`: a family's configuration, or that of any family.
pub struct Parts<C> {
    /// The model's name, where the header carries one.
    pub label: Option<String>,
    pub config: C,
    pub transformer: Tensors,
    pub vae: Tensors,
    /// Noise levels that a distilled model was trained at.
    pub allowed_sigmas: Option<Vec<f64>>,
    pub text: Option<(T5Config, Tensors)>,
    pub tokenizer: Option<Tokenizer>,
    /// What the file or the directory is called, in small letters.
    pub called: Option<String>,
    /// Whether that alone says that the model is distilled.
    pub distilled: bool,
    /// Length of the file, where it is one.
    pub bytes: Option<u64>,
    /// Remarks for the user, a line each.
    pub notes: Vec<String>,
    /// One more, where nobody says how the model is sampled: that it is not as the checkpoint names it.
    pub otherwise: Option<String>,
}

impl<C> Parts<C> {
    /// The same with another form of the configuration.
    pub fn map<D>(self, to: impl FnOnce(C) -> D) -> Parts<D> {
        let Self { label, config, transformer, vae, allowed_sigmas, text, tokenizer, .. } = self;
        let Self { called, distilled, bytes, notes, otherwise, .. } = self;
        let config = to(config);
        Parts {
            label,
            config,
            transformer,
            vae,
            allowed_sigmas,
            text,
            tokenizer,
            called,
            distilled,
            bytes,
            notes,
            otherwise,
        }
    }
}

/// A part of a single file, as its tensors tell it: the prefixes that are looked for first, and names that stand below one.
/// Other programs write other prefixes: ComfyUI `diffusion_model.` and `text_encoders.t5xxl.transformer.`.
pub struct PartNames {
    pub known: [&'static str; 2],
    pub anchors: [&'static str; 3],
}

impl PartNames {
    /// The prefix below which the part's tensors stand; `None` where there are none.
    pub fn prefix<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let below = |name: &'a str| {
            let prefix = self.anchors.iter().find_map(|anchor| name.strip_suffix(anchor))?;
            (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
        };
        let rank = |prefix: &&str| {
            (self.known.iter().position(|known| known == prefix).unwrap_or(self.known.len()), prefix.len())
        };
        names.filter_map(below).min_by_key(rank)
    }
}

/// The tensors below a prefix, without it.
pub fn part(tensors: &Tensors, prefix: &str) -> Tensors {
    tensors.renamed(|name| name.strip_prefix(prefix).map(String::from))
}

/// Looks up the shapes of a part's tensors by name.
pub fn shapes(part: &Tensors) -> impl Fn(&str) -> Option<Vec<usize>> {
    let part = part.clone();
    move |name: &str| part.shape(name).map(<[usize]>::to_vec)
}

/// The configuration that a single file carries.
pub fn header_config(tensors: &Tensors) -> Result<Option<Value>> {
    let text = tensors.metadata("config");
    let json = text.map(|text| {
        config::json(text.as_bytes()).with_context(|| format!("{}: `config` in its header is not JSON", tensors.what()))
    });
    json.transpose()
}
