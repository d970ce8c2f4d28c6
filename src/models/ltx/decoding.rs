//! What is done to a run's latents before they are decoded.

use crate::job::recipe::Recipe;
use crate::models::latents::{LatentStatistics, draw};
use crate::models::ltx::config::VaeConfig;
use crate::models::ltx::upscale::tone_map as compress_tones;
use crate::sampling::noise::Noise;
use anyhow::Result;
use candle_core::Tensor;

/// Draws the noise that the decoder expects: of the latents' shape; `None` where it expects none.
/// - `latents`: (1, f, h, w, c).
pub fn noise(config: &VaeConfig, latents: &Tensor, noise: &mut Noise) -> Result<Option<Tensor>> {
    if !config.timestep_conditioning {
        return Ok(None);
    }
    let drawn = draw(noise, latents.elem_count() / config.latent_channels, config.latent_channels)?;
    Ok(Some(drawn.reshape(latents.shape())?.to_device(latents.device())?))
}

/// Denormalises latents for the decoder, with noise mixed in and their tones compressed.
/// - `latents`: (1, f, h, w, c), normalised. `noise`: standard noise of that shape and its share, for decoders that expect some.
///   `tone_map`: 0 to 1, 0 for none; tones come after the noise in both recipes.
/// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__`, at 5260738; diffusers
///   `pipelines/ltx/pipeline_ltx_condition.py`, `__call__`, at 58eb52c, which mixes the noise into denormalised latents.
pub fn decoder_input(
    latents: &Tensor,
    statistics: &LatentStatistics,
    noise: Option<(&Tensor, f64)>,
    tone_map: f64,
    recipe: Recipe,
) -> Result<Tensor> {
    let noisy = |latents: Tensor| -> Result<Tensor> {
        let Some((drawn, share)) = noise else { return Ok(latents) };
        Ok(((latents * (1.0 - share))? + (drawn * share)?)?)
    };
    if recipe.noises_normalised() {
        let latents = compress_tones(&noisy(latents.clone())?, tone_map)?;
        return Ok(statistics.denormalise(&latents)?);
    }
    let latents = noisy(statistics.denormalise(latents)?)?;
    if tone_map == 0.0 {
        return Ok(latents);
    }
    Ok(statistics.denormalise(&compress_tones(&statistics.normalise(&latents)?, tone_map)?)?)
}
