//! Recipes: whose way of preparing, sampling and decoding a run follows.
//!
//! A model of the catalogue is run as its makers run it (`recipe` in its table of `weights.toml`): the LTX-Video releases as
//! Lightricks' own script does at 5260738, `inference.py` with its presets. A checkpoint by path that matches no entry is run as
//! diffusers' pipelines run it at 58eb52c, and so is every model with an explicit `--convention`, and the built-in one, which was
//! trained beside them. [`Recipe`] holds what the two do differently; numbers stand in the entries.
//!
//! | model | what is made of a seed |
//! | --- | --- |
//! | 2B 0.9.0 to 0.9.6-dev | 40 steps, guidance 3 with rescale 0.7, spatio-temporal guidance (`--stg`) 1 in block 19: three evaluations a step |
//! | 2B 0.9.6-distilled | 8 steps, each with fresh noise (`--stochastic`) |
//! | 2B 0.9.8-distilled, 13B distilled | 7 steps at 2/3 of the size, upscaled latents brought to their mean and deviation (`--adain`), 3 steps at 4/3, decoded and brought to the size; 13B 0.9.8: tones compressed by 0.6 (`--tone-map`) |
//! | 13B dev | the same two passes in 27 and 13 steps; guidance 1 to 8 with CFG-star, STG 0 to 4 and its blocks by noise level |
//!
//! An explicit flag replaces a whole list, in both passes; `--steps` and `--sigmas` are the first pass's, `--second-sigmas` the
//! second's. `--upscaler none` makes one pass with all steps, at the size itself.
//!
//! What differs from the script on purpose:
//! - 0.9.0 and 0.9.1 are made at 704x480 and 25 frames a second, the defaults of their own releases; the script's are newer models'.
//! - Frames are rounded to 8 bits; the script cuts.
//! - Pictures are continued by their outermost pixels where a size is no multiple of 32; the script pads with grey.
//! - A clip longer than the one asked for is held as far as the made clip goes, which may be some frames longer.
//! - A clip that begins between two latent frames is moved to the earlier one, with a line; the script refuses it.
//! - No prompt is rewritten by a language model; the script rewrites those under 120 words.
//! - Noise is drawn in diffusers' order from one generator, so that seeds mean the same in every recipe; the script draws token by
//!   token, and some of it from torch's global generator.
//! - Stills are compressed by openh264's constant quantiser, not x264's CRF, those of more than 4 megapixels in tiles;
//!   `--image-crf 0` leaves blur and compression out, which the script cannot.
//! - Pictures between borders (`--fit pad`), which the script does not know, are brought to the clip's size before blur and
//!   compression.
//! - Frames of a held clip that are larger than the last pass are rounded to 8 bits at its size, once.
//! - `--guidance-rescale` holds without STG where it is asked for by flag; the script's own rescale waits for STG.
//! - A flow is missing: 13B 0.9.8 mixed, the dev model's first pass and the distilled one's second.

use crate::job::convention::Convention;
use serde::{Deserialize, Serialize};

/// Whose way a run follows; everything that differs between the two is a method here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// As Lightricks' own script.
    Lightricks,
    /// As diffusers' pipelines.
    #[default]
    Diffusers,
}

impl Recipe {
    /// Decides the recipe of a run.
    /// - `asked`: `--convention`, which is a word of diffusers. `entry`: what the model's entry says.
    pub fn decide(asked: Option<Convention>, entry: Option<Recipe>) -> Self {
        match asked {
            Some(_) => Recipe::Diffusers,
            None => entry.unwrap_or_default(),
        }
    }

    /// Tokens that a prompt is cut to.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `encode_prompt` (`text_encoder_max_tokens`), at 5260738.
    pub fn max_tokens(self, convention: Convention) -> usize {
        match self {
            Recipe::Lightricks => 256,
            Recipe::Diffusers => convention.max_tokens(),
        }
    }

    /// Tokens that T5 runs over, for a prompt of `tokens`. The script masks padding for every model, so leaving it out changes
    /// nothing; diffusers' `LTXPipeline` attends to it.
    /// - Source: as [`Recipe::max_tokens`].
    pub fn encoded_tokens(self, convention: Convention, tokens: usize) -> usize {
        match self {
            Recipe::Lightricks => tokens,
            Recipe::Diffusers => convention.encoded_tokens(tokens),
        }
    }

    /// Whether the schedule is the one that the checkpoint's header names; else it goes by the convention.
    /// - Source: LTX-Video `inference.py`, `create_ltx_video_pipeline` (`sampler: from_checkpoint`), at 5260738.
    pub fn follows_header(self) -> bool {
        self == Recipe::Lightricks
    }

    /// Whether the entry's rescale of guidance holds only where there is spatio-temporal guidance.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__` (`do_rescaling`), at 5260738.
    pub fn rescales_with_stg_only(self) -> bool {
        self == Recipe::Lightricks
    }

    /// Whether decode noise is mixed into normalised latents; diffusers mixes it into denormalised ones.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__` (`decode_noise_scale`), at 5260738.
    pub fn noises_normalised(self) -> bool {
        self == Recipe::Lightricks
    }

    /// Whether pictures are blurred and compressed at their own size and brought to the pass's size after that, bilinearly; else
    /// they are brought to the clip's size first, by Lanczos as in diffusers, which neither blurs nor compresses.
    /// - Source: LTX-Video `inference.py`, `load_image_to_tensor_with_resize_and_crop` with `just_crop`, at 5260738.
    pub fn resizes_last(self) -> bool {
        self == Recipe::Lightricks
    }

    /// Whether every clip of more than one frame begins at a latent frame, also where all of it stands beside the video.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `_handle_non_first_conditioning_sequence`, at 5260738.
    pub fn holds_clips_at_multiples(self) -> bool {
        self == Recipe::Lightricks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convention_that_is_asked_for_is_diffusers() {
        let decide = Recipe::decide;
        assert_eq!(decide(None, Some(Recipe::Lightricks)), Recipe::Lightricks);
        assert_eq!(decide(Some(Convention::Text), Some(Recipe::Lightricks)), Recipe::Diffusers);
        assert_eq!(decide(None, None), Recipe::Diffusers);
    }

    #[test]
    fn prompts_are_padded_by_diffusers_text_alone() {
        use Convention::{Condition, Text};
        let lengths =
            |recipe: Recipe, convention| (recipe.max_tokens(convention), recipe.encoded_tokens(convention, 7));
        assert_eq!(lengths(Recipe::Diffusers, Text), (128, 128));
        assert_eq!(lengths(Recipe::Diffusers, Condition), (256, 7));
        assert_eq!(lengths(Recipe::Lightricks, Text), (256, 7));
        assert_eq!(lengths(Recipe::Lightricks, Condition), (256, 7));
    }
}
