//! The video autoencoder of LTX-Video. Unusual about it:
//! - 0.9.0 and 0.9.1 compress 192 pixels' worth of colour into each latent value, so the decoder itself has to invent detail;
//! - from 0.9.1 on it does so as a last denoising step: it takes a timestep, and 0.9.1 draws noise of its own between layers;
//! - the encoder is causal in time and the decoder is not, so decoding in groups has to look one frame ahead in every layer;
//! - its norms are over channels alone, so no statistic spans space or time, and groups of frames are exact;
//! - pixels enter and leave as 4x4 patches, with the width offset slower than the height offset.

mod blocks;
mod decoder;
mod encoder;

pub use decoder::Decoder;
pub use encoder::Encoder;

use super::config::VaeConfig;
use crate::models::latents::LatentStatistics;
use crate::nn::vars::Vars;
use candle_core::Result;

/// Loads mean and std of the latents.
/// - `vb` holds `latents_mean` and `latents_std`.
pub fn statistics(config: &VaeConfig, vb: Vars) -> Result<LatentStatistics> {
    let c = config.latent_channels;
    let std = (vb.get(c, "latents_std")? / config.scaling_factor)?;
    Ok(LatentStatistics { mean: vb.get(c, "latents_mean")?, std })
}
