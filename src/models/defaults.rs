//! What a family's runs take where neither the user nor the model's entry says anything.

use crate::job::geometry::Extent;

/// A family's own defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Pixels and frames.
    pub clip: Extent,
    pub fps: f64,
    /// The longest clip that is made at once, in frames.
    pub window: usize,
    pub steps: usize,
    pub guidance: f64,
    /// Side of the first of two passes, of the whole; the upscaler doubles it.
    pub downscale: f64,
    /// Noise levels of a second pass, without the closing 0.
    pub refine: &'static [f64],
}

/// Where a run can hold stills and clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// One still, as the first frame.
    FirstFrame,
    /// Stills and clips at any frame.
    AnyFrame,
}
