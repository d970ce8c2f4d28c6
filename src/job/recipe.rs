//! Whose way of preparing, sampling and decoding a run follows. A model of the catalogue is run as its makers run it (`recipe` in its
//! table of `weights.toml`), a checkpoint by path that matches no entry as diffusers' pipelines run it, and so is every model with
//! an explicit `--convention`, and the built-in one, which was trained beside them. Numbers stand in the entries; what a family's
//! two recipes do differently, and where reel differs from both on purpose, stands in its room.

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

    /// Whether the entry's rescale of guidance holds only where there is spatio-temporal guidance.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__` (`do_rescaling`), at 5260738.
    pub fn rescales_with_stg_only(self) -> bool {
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
}
