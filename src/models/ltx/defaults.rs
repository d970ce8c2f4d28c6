//! Defaults of runs with LTX-Video.

use crate::job::convention::Convention;
use crate::job::geometry::Extent;
use crate::models::defaults::{Defaults, Holds};

/// - Source of clip, rate, steps and guidance: diffusers `pipelines/ltx/pipeline_ltx.py` and `pipeline_ltx_condition.py`, `__call__`,
///   at 58eb52c. The window is the longest clip that LTX-Video's README recommends to make at once. Two passes: LTX-Video
///   `configs/*.yaml`, `downscale_factor` and the second pass of the distilled models' presets, at 5260738.
pub const DEFAULTS: Defaults = Defaults {
    clip: Extent { width: 704, height: 512, frames: 161 },
    fps: 25.0,
    window: 257,
    steps: 50,
    guidance: 3.0,
    downscale: 0.6666666,
    refine: &[0.9094, 0.725, 0.4219],
};

/// Noise that each step puts on what is held.
/// - Source: as [`DEFAULTS`], `image_cond_noise_scale`.
pub fn image_noise(convention: Convention) -> f64 {
    match convention {
        Convention::Text => 0.0,
        Convention::Condition => 0.15,
    }
}

/// Where a run can hold stills and clips: diffusers' `LTXImageToVideoPipeline` takes one still, `LTXConditionPipeline` anything.
pub fn holds(convention: Convention) -> Holds {
    match convention {
        Convention::Text => Holds::FirstFrame,
        Convention::Condition => Holds::AnyFrame,
    }
}
