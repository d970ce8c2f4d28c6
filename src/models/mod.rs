//! The families of video models, a module each. Other modules ask about a model only here and in [`networks`], with one `match` for
//! each question, so that a new family is a module and an arm in each `match`.

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
use crate::weights::rules::{GgufForm, LayerNames, Rules};
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

    /// Returns the family's name, as in catalogue entries.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ltx => "ltx",
        }
    }

    /// Returns the releases that reel runs, as text.
    pub fn releases(self) -> &'static str {
        match self {
            Family::Ltx => ltx::releases::RELEASES,
        }
    }

    /// Returns the family of an entry's model; an entry that names none is LTX-Video, once the only family.
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

    /// Returns the settings of a run where neither request nor entry names any.
    pub fn defaults(self) -> &'static Defaults {
        match self {
            Family::Ltx => &ltx::defaults::DEFAULTS,
        }
    }

    /// Returns the default `--image-noise`: the scale of the noise that each step adds to conditioning latents.
    pub fn image_noise(self, convention: Convention) -> f64 {
        match self {
            Family::Ltx => ltx::defaults::image_noise(convention),
        }
    }

    /// Returns at which frames its runs can be conditioned on stills and clips.
    pub fn holds(self, convention: Convention) -> Holds {
        match self {
            Family::Ltx => ltx::defaults::holds(convention),
        }
    }

    /// Returns how many leading latent frames of a conditioning clip become extra tokens beside the video's, where the clip begins
    /// after frame 0.
    pub fn prefix_latent_frames(self) -> usize {
        match self {
            Family::Ltx => ltx::conditioning::PREFIX_LATENT_FRAMES,
        }
    }

    /// Returns the number of tokens that a prompt is cut to.
    pub fn max_tokens(self, recipe: Recipe, convention: Convention) -> usize {
        match self {
            Family::Ltx => ltx::recipe::max_tokens(recipe, convention),
        }
    }

    /// Returns the number of tokens that the text encoder runs over for a prompt of `tokens`, padding included where it is attended
    /// to.
    pub fn encoded_tokens(self, recipe: Recipe, convention: Convention, tokens: usize) -> usize {
        match self {
            Family::Ltx => ltx::recipe::encoded_tokens(recipe, convention, tokens),
        }
    }

    /// Returns the clip sizes of the first and the second of two passes.
    /// - `legal`: the clip in whole latents. `factor`: sides of the first pass, as a fraction of it; sides may come to 0.
    pub fn pass_sizes(self, legal: Extent, geometry: Geometry, factor: f64) -> [Extent; 2] {
        match self {
            Family::Ltx => ltx::two_passes::sizes(legal, geometry, factor),
        }
    }

    /// Returns the clip sizes as [`Family::pass_sizes`] and logs them.
    /// - Errors when the first has a side of 0.
    pub fn canvases(self, legal: Extent, geometry: Geometry, factor: f64, progress: &Progress) -> Result<Vec<Extent>> {
        match self {
            Family::Ltx => ltx::two_passes::canvases(legal, geometry, factor, progress),
        }
    }

    /// Returns the configurations of its released networks.
    pub fn sizes(self) -> Vec<Size> {
        match self {
            Family::Ltx => ltx::sizes::sizes(),
        }
    }
}

/// Returns the configurations of all released networks: each family's, and the text encoder that they share.
pub fn sizes() -> Vec<Size> {
    let mut all: Vec<Size> = Family::ALL.into_iter().flat_map(Family::sizes).collect();
    all.push(text::sizes::t5_xxl());
    all
}

/// Configuration of a model: sizes of its networks and settings of its scheduler; no weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    Ltx(ltx::Config),
}

impl Config {
    /// Returns the configuration of a catalogue entry's model, before it is downloaded.
    /// - Errors on an entry whose sizes are unknown.
    pub fn of_entry(entry: &Entry) -> Result<Self> {
        match Family::of_entry(entry)? {
            Family::Ltx => ltx::Config::of_entry(entry).map(Config::Ltx),
        }
    }

    /// Builds a configuration of one given network and the newest release's others, for benchmarks of that network.
    /// - `part`: which network. `config`: its `config.json`. `what`: its name, for errors.
    pub fn with(part: Part, config: &Value, what: &str) -> Result<Self> {
        ltx::Config::with(part, config, what).map(Config::Ltx) // the only family with released networks
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

    /// Returns the pipeline that the checkpoint was trained for.
    pub fn convention(&self) -> Convention {
        match self {
            Config::Ltx(config) => config.convention(),
        }
    }

    /// Returns the channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            Config::Ltx(config) => config.vae.latent_channels,
        }
    }

    /// Returns the number of the transformer's blocks.
    pub fn blocks(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.layers,
        }
    }

    /// Returns the channels of each of the transformer's attention heads.
    pub fn head_dim(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.head_dim,
        }
    }

    /// Returns the channels of the text embeddings that the transformer reads.
    pub fn text_channels(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.caption_channels,
        }
    }

    /// Returns the number of the transformer's attention heads.
    pub fn heads(&self) -> usize {
        match self {
            Config::Ltx(config) => config.transformer.heads,
        }
    }

    /// Returns the VAE's version, as named in the catalogue.
    pub fn vae_version(&self) -> &'static str {
        match self {
            Config::Ltx(config) => config.vae.version().name(),
        }
    }

    /// Returns which of the transformer's matrices are quantised, and how they are read.
    pub fn rules(&self) -> &'static Rules {
        match self {
            Config::Ltx(_) => &ltx::names::QUANTISING,
        }
    }

    /// Returns the names that LoRA files may use for the transformer's layers.
    pub fn layer_names(&self) -> LayerNames {
        match self {
            Config::Ltx(_) => ltx::names::LAYERS,
        }
    }

    /// Returns how the transformer is written to a GGUF file.
    /// - `allowed_sigmas`: sigmas that a distilled model was trained at.
    pub fn form(&self, allowed_sigmas: Option<&[f64]>) -> GgufForm {
        match self {
            Config::Ltx(config) => ltx::open::form(&config.transformer, allowed_sigmas),
        }
    }

    /// Returns the name of a transformer tensor in Lightricks' single files.
    pub fn transformer_name_in_file(&self, name: &str) -> String {
        match self {
            Config::Ltx(_) => {
                format!("{}{}", ltx::names::TRANSFORMER_PREFIX, ltx::names::transformer_to_official(name))
            }
        }
    }

    /// Returns the name of a VAE tensor in Lightricks' single files.
    pub fn vae_name_in_file(&self, name: &str) -> String {
        match self {
            Config::Ltx(config) => {
                format!("{}{}", ltx::names::VAE_PREFIX, ltx::names::vae_to_official(name, &config.vae))
            }
        }
    }

    /// Checks that transformer and VAE belong together, and all their tensors' names and shapes except the VAE encoder's.
    pub fn check(&self, transformer: &Tensors, vae: &Tensors) -> Result<()> {
        match self {
            Config::Ltx(config) => ltx::open::check(config, transformer, vae),
        }
    }

    /// Returns the prefix of a block's number in the transformer's tensor names.
    pub fn block_prefix(&self) -> &'static str {
        match self {
            Config::Ltx(_) => ltx::names::BLOCKS,
        }
    }

    /// Returns whether the decoder takes a timestep and noised latents.
    pub fn decoder_takes_timestep(&self) -> bool {
        match self {
            Config::Ltx(config) => config.vae.timestep_conditioning,
        }
    }

    /// Returns the type of the released weights.
    pub fn released_dtype(&self) -> DType {
        match self {
            Config::Ltx(config) => config.released_dtype(),
        }
    }

    /// Returns the sigmas and timesteps of a pass over a video of `tokens`.
    /// - Errors on sigmas that do not fall, and when no step is left.
    pub fn schedule(&self, levels: &Levels, convention: Convention, recipe: Recipe, tokens: usize) -> Result<Schedule> {
        match self {
            Config::Ltx(config) => ltx::schedule::schedule(levels, &config.scheduler, convention, recipe, tokens),
        }
    }

    /// Counts memory and operations of one transformer evaluation, over `tokens` video tokens and `text` prompt tokens.
    pub fn transformer_cost(&self, tokens: usize, text: usize, widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::transformer::transformer(&config.transformer, tokens, text, widths),
        }
    }

    /// Counts the projected text, and its keys and values in each block, that the transformer keeps for prompts of `tokens` each.
    pub fn contexts_cost(&self, tokens: &[usize], widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::transformer::contexts(&config.transformer, tokens, widths),
        }
    }

    /// Counts memory and operations of the VAE's encoder over a clip or tile.
    /// - `clip`: frames, height, width in pixels. `group`: latent frames at a time.
    pub fn encoder_cost(&self, clip: [usize; 3], group: usize, widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::vae::encoder(&config.vae, clip, group, widths),
        }
    }

    /// Counts memory and operations of the VAE's decoder over a clip or tile.
    /// - `latents`: frames, height, width.
    pub fn decoder_cost(&self, latents: [usize; 3], chunking: Chunking, widths: Widths) -> Count {
        match self {
            Config::Ltx(config) => ltx::cost::vae::decoder(&config.vae, latents, chunking, widths),
        }
    }
}

/// Configuration of the latent upscaler that runs between two passes.
#[derive(Clone, Debug, PartialEq)]
pub enum UpscalerConfig {
    Ltx(ltx::upscaler::UpscalerConfig),
}

impl UpscalerConfig {
    /// Returns the configuration of a family's released upscaler.
    pub fn released(family: Family) -> Result<Self> {
        match family {
            Family::Ltx => Ok(UpscalerConfig::Ltx(ltx::upscaler::UpscalerConfig::released()?)),
        }
    }

    /// Counts memory and operations of the upscaler over a clip.
    /// - `latents`: frames, height, width. `widths`: those of f32, in which it runs.
    pub fn cost(&self, latents: [usize; 3], widths: Widths) -> Count {
        match self {
            UpscalerConfig::Ltx(config) => ltx::cost::upscaler::upscaler(config, latents, widths),
        }
    }
}

// With one family there is nothing to detect: `ltx` refuses checkpoints that are not LTX-Video's.

/// Opens a checkpoint by path.
/// - `with_text`: whether to open its own text encoder. `vae`: a VAE to use in place of its own.
pub fn checkpoint(path: &Path, with_text: bool, vae: Option<&Path>) -> Result<Parts<Config>> {
    Ok(ltx::open::checkpoint(path, with_text, vae)?.map(Config::Ltx))
}

/// Opens a model embedded in the program, as [`checkpoint`].
pub fn built_in(file: &'static [u8], vae: Option<&Path>) -> Result<Parts<Config>> {
    Ok(ltx::open::built_in(file, vae)?.map(Config::Ltx))
}

/// Opens the transformer at `path`; returns its tensors, how they are written to a GGUF file, and which of them are quantised.
/// - `None` where there is no transformer.
pub fn transformer(path: &Path) -> Result<Option<(Tensors, GgufForm, &'static Rules)>> {
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
