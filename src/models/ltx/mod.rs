//! LTX-Video, 0.9.0 to 0.9.8.

pub mod conditioning;
pub mod config;
pub mod cost;
pub mod names;
pub mod transformer;
pub mod two_passes;
pub mod upscale;
pub mod upscaler;
pub mod vae;

use crate::hub::catalogue::RunDefaults;
use crate::job::convention::Convention;
use config::{VaeConfig, VaeVersion};

/// What reel takes of the family, for errors.
pub(crate) const RELEASES: &str = "LTX-Video 0.9.0 to 0.9.8";

impl Convention {
    /// The convention of a checkpoint, by its VAE.
    pub fn of(vae: &VaeConfig) -> Self {
        match vae.version() {
            VaeVersion::V090 | VaeVersion::V091 => Convention::Text,
            VaeVersion::V095 => Convention::Condition,
        }
    }
}

impl RunDefaults {
    /// Returns how the model was trained to be sampled: as its entry says, else by its VAE.
    pub fn convention(&self, vae: &VaeConfig) -> Convention {
        self.convention.unwrap_or_else(|| Convention::of(vae))
    }
}
