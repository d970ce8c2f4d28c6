//! The families of video models. Each is a room of its own; what the other rooms ask of a model they ask here and in [`networks`], with
//! one `match` a question, so that a new family is a room and an arm in each.

pub mod bundle;
pub mod cost;
pub mod defaults;
pub mod latents;
pub mod locate;
pub mod ltx;
pub mod networks;
pub mod pack;
pub mod parts;
pub mod quantize;
pub mod random;
pub mod sizes;
pub mod text;

use crate::hub::catalogue::Entry;
use crate::job::convention::Convention;
use crate::job::geometry::{Extent, Geometry};
use crate::job::recipe::Recipe;
use crate::nn::stream::Chunking;
use crate::platform::progress::Progress;
use crate::sampling::solver::{Levels, Schedule};
use crate::weights::open::Tensors;
use crate::weights::rules::{Form, LayerNames, Rules};
use anyhow::{Context, Result};
use candle_core::DType;
use cost::{Count, Widths};
use defaults::{Defaults, Holds};
use parts::Parts;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sizes::{Part, Size};
use std::path::Path;

/// The families that reel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// LTX-Video, 0.9.0 to 0.9.8.
    Ltx,
}

impl Family {
    pub const ALL: [Family; 1] = [Family::Ltx];

    /// Its name, as entries of the catalogue have it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ltx => "ltx",
        }
    }

    /// Which of its releases reel runs.
    pub fn releases(self) -> &'static str {
        match self {
            Family::Ltx => ltx::releases::RELEASES,
        }
    }

    /// Returns the family that an entry's model is of; entries that name none were there before there were others.
    /// - Errors on an unknown name, with the choices.
    pub fn of_entry(entry: &Entry) -> Result<Self> {
        let Some(named) = entry.family.as_deref() else { return Ok(Family::Ltx) };
        let found = Family::ALL.into_iter().find(|family| family.name() == named);
        found.with_context(|| {
            let known = Family::ALL.map(Family::name).join("`, `");
            format!(
                "the entry `{}` is of the family `{named}`, which reel does not know\n  choices: `{known}`",
                entry.name
            )
        })
    }

    /// What its runs take where nobody says anything.
    pub fn defaults(self) -> &'static Defaults {
        match self {
            Family::Ltx => &ltx::defaults::DEFAULTS,
        }
    }

    /// Noise that each step puts on what is held, where nobody says anything.
    pub fn image_noise(self, convention: Convention) -> f64 {
        match self {
            Family::Ltx => ltx::defaults::image_noise(convention),
        }
    }

    /// Where its runs can hold stills and clips.
    pub fn holds(self, convention: Convention) -> Holds {
        match self {
            Family::Ltx => ltx::defaults::holds(convention),
        }
    }

    /// Latent frames at the start of a held clip that stand beside the video, as tokens of their own, where the clip begins at a
    /// later frame than the first.
    pub fn beside(self) -> usize {
        match self {
            Family::Ltx => ltx::conditioning::PREFIX,
        }
    }

    /// Tokens that a prompt is cut to.
    pub fn max_tokens(self, recipe: Recipe, convention: Convention) -> usize {
        match self {
            Family::Ltx => ltx::recipe::max_tokens(recipe, convention),
        }
    }

    /// Tokens that the text encoder runs over, for a prompt of `tokens`.
    pub fn encoded_tokens(self, recipe: Recipe, convention: Convention, tokens: usize) -> usize {
        match self {
            Family::Ltx => ltx::recipe::encoded_tokens(recipe, convention, tokens),
        }
    }

    /// What the first and the second of two passes make.
    /// - `legal`: the whole. `factor`: sides of the first, of the whole; a small one may come to nothing.
    pub fn pass_sizes(self, legal: Extent, geometry: Geometry, factor: f64) -> [Extent; 2] {
        match self {
            Family::Ltx => ltx::two_passes::sizes(legal, geometry, factor),
        }
    }

    /// What each of two passes makes, said to the user.
    /// - Errors when the first would come to nothing.
    pub fn canvases(self, legal: Extent, geometry: Geometry, factor: f64, progress: &Progress) -> Result<Vec<Extent>> {
        match self {
            Family::Ltx => ltx::two_passes::canvases(legal, geometry, factor, progress),
        }
    }

    /// Sizes of its released networks.
    pub fn sizes(self) -> Vec<Size> {
        match self {
            Family::Ltx => ltx::sizes::sizes(),
        }
    }
}

/// Sizes of all released networks: of each family, and the text encoders that they share.
pub fn sizes() -> Vec<Size> {
    let mut all: Vec<Size> = Family::ALL.into_iter().flat_map(Family::sizes).collect();
    all.push(text::sizes::t5_xxl());
    all
}

/// Sizes of a model's networks, and what it says of its sampling: all that is known of it without weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    Ltx(ltx::Config),
}

impl Config {
    /// Reads off an entry of the catalogue what its model has, before it is here.
    /// - Errors on an entry whose sizes are unknown.
    pub fn of_entry(entry: &Entry) -> Result<Self> {
        match Family::of_entry(entry)? {
            Family::Ltx => ltx::Config::of_entry(entry).map(Config::Ltx),
        }
    }

    /// A configuration with one network of a given size and the newest release's others, to time that one by.
    /// - `config`: its `config.json`. `what`: its name, for errors.
    pub fn with(part: Part, config: &Value, what: &str) -> Result<Self> {
        ltx::Config::with(part, config, what).map(Config::Ltx) // of which all released sizes are
    }

    pub fn family(&self) -> Family {
        match self {
            Config::Ltx(_) => Family::Ltx,
        }
    }

    pub fn geometry(&self) -> Geometry {
        match self {
            Config::Ltx(config) => config.geometry(),
        }
    }

    /// How the checkpoint was trained to be sampled.
    pub fn convention(&self) -> Convention {
        match self {
            Config::Ltx(config) => config.convention(),
        }
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            Config::Ltx(config) => config.vae.latent_channels,
        }
    }

    /// Blocks of the transformer.
    pub fn blocks(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.layers,
        }
    }

    /// Channels of one of the transformer's heads.
    pub fn head_dim(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.head_dim,
        }
    }

    /// Channels of the text that the transformer reads.
    pub fn text_channels(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.caption_channels,
        }
    }

    /// Heads of the transformer.
    pub fn heads(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.heads,
        }
    }

    /// Which generation of the VAE it has, as the catalogue names it.
    pub fn vae_version(&self) -> &'static str {
        match self {
            Config::Ltx(config) => config.vae.version().name(),
        }
    }

    /// Which of the transformer's matrices are quantised, and how they are read.
    pub fn rules(&self) -> &'static Rules {
        match self {
            Config::Ltx(_) => &ltx::names::QUANTISING,
        }
    }

    /// What LoRAs may call the transformer's layers.
    pub fn layer_names(&self) -> LayerNames {
        match self {
            Config::Ltx(_) => ltx::names::LAYERS,
        }
    }

    /// How the transformer is written to a GGUF file.
    /// - `allowed_sigmas`: noise levels that it was trained at, where it is distilled.
    pub fn form(&self, allowed_sigmas: Option<&[f64]>) -> Form {
        match self {
            Config::Ltx(config) => ltx::open::form(&config.transformer, allowed_sigmas),
        }
    }

    /// What a single file calls a tensor of the transformer.
    pub fn transformer_name_in_file(&self, name: &str) -> String {
        match self {
            Config::Ltx(_) => {
                format!("{}{}", ltx::names::TRANSFORMER_PREFIX, ltx::names::transformer_to_official(name))
            }
        }
    }

    /// What a single file calls a tensor of the VAE.
    pub fn vae_name_in_file(&self, name: &str) -> String {
        match self {
            Config::Ltx(config) => {
                format!("{}{}", ltx::names::VAE_PREFIX, ltx::names::vae_to_official(name, &config.vae))
            }
        }
    }

    /// Checks that transformer and VAE belong together, and every name and shape in them but for those of the VAE's encoder.
    pub fn check(&self, transformer: &Tensors, vae: &Tensors) -> Result<()> {
        match self {
            Config::Ltx(config) => ltx::open::check(config, transformer, vae),
        }
    }

    /// What stands before a block's number in the names of the transformer's weights.
    pub fn block_prefix(&self) -> &'static str {
        match self {
            Config::Ltx(_) => ltx::names::BLOCKS,
        }
    }

    /// Whether the decoder takes a timestep, and noise in its latents.
    pub fn decoder_takes_timestep(&self) -> bool {
        match self {
            Config::Ltx(config) => config.vae.timestep_conditioning,
        }
    }

    /// What the released weights are kept in.
    pub fn released_in(&self) -> DType {
        match self {
            Config::Ltx(config) => config.released_in(),
        }
    }

    /// Returns the noise levels of a pass over a video of `tokens`.
    /// - Errors on levels that do not fall, and when all steps are left out.
    pub fn schedule(&self, levels: &Levels, convention: Convention, recipe: Recipe, tokens: usize) -> Result<Schedule> {
        match self {
            Config::Ltx(config) => ltx::schedule::schedule(levels, &config.scheduler, convention, recipe, tokens),
        }
    }

    /// Counts one evaluation of the transformer over `tokens` tokens and a prompt of `text`.
    pub fn transformer_cost(&self, tokens: usize, text: usize, widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::transformer::transformer(&config.transformer, tokens, text, widths),
        }
    }

    /// Counts what the transformer keeps of prompts of `tokens`, from its first step on.
    pub fn contexts_cost(&self, tokens: &[usize], widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::transformer::contexts(&config.transformer, tokens, widths),
        }
    }

    /// Counts the VAE's encoder over a clip or tile of pixels.
    /// - `clip`: frames, height, width. `group`: latent frames at a time.
    pub fn encoder_cost(&self, clip: [usize; 3], group: usize, widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::vae::encoder(&config.vae, clip, group, widths),
        }
    }

    /// Counts the VAE's decoder over a clip or tile of latents.
    /// - `latents`: frames, height, width.
    pub fn decoder_cost(&self, latents: [usize; 3], chunking: Chunking, widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::vae::decoder(&config.vae, latents, chunking, widths),
        }
    }
}

/// Sizes of what goes between two passes.
#[derive(Clone, Debug, PartialEq)]
pub enum UpscalerConfig {
    Ltx(ltx::upscaler::UpscalerConfig),
}

impl UpscalerConfig {
    /// That of a family's releases.
    pub fn released(family: Family) -> Result<Self> {
        match family {
            Family::Ltx => Ok(UpscalerConfig::Ltx(ltx::upscaler::UpscalerConfig::released()?)),
        }
    }

    /// Counts it over a clip of latents.
    /// - `latents`: frames, height, width. `widths`: of f32, in which it runs.
    pub fn cost(&self, latents: [usize; 3], widths: Widths) -> Count {
        match self {
            UpscalerConfig::Ltx(config) => ltx::cost::upscaler::upscaler(config, latents, widths),
        }
    }
}

// Of one family there is no telling it from others: what is not LTX-Video's is refused in its room.

/// Opens a checkpoint by path.
/// - `with_text`: whether its own text encoder is wanted. `vae`: another VAE than its own.
pub fn checkpoint(path: &Path, with_text: bool, vae: Option<&Path>) -> Result<Parts<Config>> {
    Ok(ltx::open::checkpoint(path, with_text, vae)?.map(Config::Ltx))
}

/// Opens a model that is part of the program, as [`checkpoint`].
pub fn built_in(file: &'static [u8], vae: Option<&Path>) -> Result<Parts<Config>> {
    Ok(ltx::open::built_in(file, vae)?.map(Config::Ltx))
}

/// The transformer at `path`, how it is written to a GGUF file, and what of it is quantised; `None` where there is none.
pub fn transformer(path: &Path) -> Result<Option<(Tensors, Form, &'static Rules)>> {
    Ok(ltx::open::transformer(path)?.map(|(tensors, form)| (tensors, form, &ltx::names::QUANTISING)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_of_a_family_that_is_known() {
        let entry = |family: Option<&str>| Entry { family: family.map(String::from), ..Entry::default() };
        assert_eq!(Family::of_entry(&entry(None)).unwrap(), Family::Ltx);
        for family in Family::ALL {
            assert_eq!(Family::of_entry(&entry(Some(family.name()))).unwrap(), family);
        }
        let error = Family::of_entry(&entry(Some("sora"))).unwrap_err().to_string();
        assert!(error.contains("`sora`") && error.contains("choices: `ltx`"), "{error}");
    }
}
