//! LTX-Video as Lightricks' own script runs it, and as diffusers' pipelines do.
//!
//! A model of the catalogue is run as its makers run it (`recipe` in its table of `weights.toml`): the LTX-Video releases as
//! Lightricks' own script does at 5260738, `inference.py` with its presets. A checkpoint by path that matches no entry is run as
//! diffusers' pipelines run it at 58eb52c, and so is every model with an explicit `--convention`, and the built-in one, which was
//! trained beside them. What the two do differently stands here and in [`Recipe`], numbers in the entries.
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
use crate::job::recipe::Recipe;

/// Tokens that a prompt is cut to.
/// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `encode_prompt` (`text_encoder_max_tokens`), at 5260738; diffusers
///   `pipelines/ltx/pipeline_ltx.py` and `pipeline_ltx_condition.py`, `__call__` (`max_sequence_length`), at 58eb52c.
pub fn max_tokens(recipe: Recipe, convention: Convention) -> usize {
    match (recipe, convention) {
        (Recipe::Diffusers, Convention::Text) => 128,
        (Recipe::Lightricks, _) | (Recipe::Diffusers, Convention::Condition) => 256,
    }
}

/// Tokens that T5 runs over, for a prompt of `tokens`. The script masks padding for every model, and so does diffusers'
/// `LTXConditionPipeline`, so leaving it out changes nothing; `LTXPipeline` attends to it.
/// - Source: as [`max_tokens`].
pub fn encoded_tokens(recipe: Recipe, convention: Convention, tokens: usize) -> usize {
    match (recipe, convention) {
        (Recipe::Diffusers, Convention::Text) => max_tokens(recipe, convention),
        (Recipe::Lightricks, _) | (Recipe::Diffusers, Convention::Condition) => tokens,
    }
}

impl Recipe {
    /// Whether the schedule is the one that the checkpoint's header names; else it goes by the convention.
    /// - Source: LTX-Video `inference.py`, `create_ltx_video_pipeline` (`sampler: from_checkpoint`), at 5260738.
    pub fn follows_header(self) -> bool {
        self == Recipe::Lightricks
    }

    /// Whether decode noise is mixed into normalised latents; diffusers mixes it into denormalised ones.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__` (`decode_noise_scale`), at 5260738.
    pub fn noises_normalised(self) -> bool {
        self == Recipe::Lightricks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffusers_text_alone_pads_prompts() {
        use Convention::{Condition, Text};
        let lengths =
            |recipe: Recipe, convention| (max_tokens(recipe, convention), encoded_tokens(recipe, convention, 7));
        assert_eq!(lengths(Recipe::Diffusers, Text), (128, 128));
        assert_eq!(lengths(Recipe::Diffusers, Condition), (256, 7));
        assert_eq!(lengths(Recipe::Lightricks, Text), (256, 7));
        assert_eq!(lengths(Recipe::Lightricks, Condition), (256, 7));
    }
}
