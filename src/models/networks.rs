//! The networks of a model once they are loaded, whatever its family: pixels to latents and back, and noise to latents.

use crate::hub::catalogue::Entry;
use crate::job::convention::Convention;
use crate::job::recipe::Recipe;
use crate::job::request::Request;
use crate::models::latents::{Condition, LatentStatistics, Layout, Posterior, Prompt, Start};
use crate::models::{Config, Family, UpscalerConfig, ltx};
use crate::nn::stream::Chunking;
use crate::nn::vars::Vars;
use crate::platform::cancel::{Cancel, Cancelled};
use crate::sampling::noise::Noise;
use crate::sampling::solver::{Schedule, State};
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::path::PathBuf;

/// Loads mean and deviation of the latents.
/// - `vb`: the VAE's weights.
pub fn statistics(config: &Config, vb: Vars) -> candle_core::Result<LatentStatistics> {
    match config {
        Config::Ltx(config) => ltx::vae::statistics(&config.vae, vb),
    }
}

/// Pixels -> latents.
pub enum Encoder {
    Ltx(ltx::vae::Encoder),
}

impl Encoder {
    /// - `vb`: the VAE's weights.
    pub fn load(config: &Config, vb: Vars) -> candle_core::Result<Self> {
        Ok(match config {
            Config::Ltx(config) => Encoder::Ltx(ltx::vae::Encoder::load(&config.vae, vb.pp("encoder"))?),
        })
    }

    /// Means and log-variances, as they come: (1, f, h, w, [`Encoder::moment_channels`]).
    /// - `frames`: 1 + k frames a latent frame. `group`: latent frames to encode at a time; any number gives the same.
    ///   `read`: (first frame, how many) -> (1, frames, H, W, 3) in [-1, 1]. `after`: called with the number of frames done; an error of
    ///   it ends the work.
    pub fn moments(
        &self,
        frames: usize,
        group: usize,
        read: impl FnMut(usize, usize) -> candle_core::Result<Tensor>,
        after: impl FnMut(usize) -> Result<(), Cancelled>,
    ) -> candle_core::Result<Tensor> {
        match self {
            Encoder::Ltx(encoder) => encoder.moments(frames, group, read, after),
        }
    }

    /// Channels of [`Encoder::moments`].
    pub fn moment_channels(&self) -> usize {
        match self {
            Encoder::Ltx(encoder) => encoder.moment_channels(),
        }
    }

    /// - `moments`: of [`Encoder::moments`].
    pub fn posterior(&self, moments: &Tensor) -> candle_core::Result<Posterior> {
        match self {
            Encoder::Ltx(encoder) => encoder.posterior(moments),
        }
    }
}

/// Latents -> pixels.
pub enum Decoder {
    Ltx(ltx::vae::Decoder),
}

impl Decoder {
    /// - `vb`: the VAE's weights.
    pub fn load(config: &Config, vb: Vars) -> candle_core::Result<Self> {
        Ok(match config {
            Config::Ltx(config) => Decoder::Ltx(ltx::vae::Decoder::load(&config.vae, vb.pp("decoder"))?),
        })
    }

    /// Runs a clip through and hands over its frames as they are settled.
    /// - `latents`: (1, f, h, w, c), denormalised. `timestep`: in 0..=1, read only where the decoder takes one. `noise`: for what
    ///   it may add between its layers. `each`: takes (1, frames, H, W, 3). Returns the generator as it is afterwards.
    pub fn frames<E: From<candle_core::Error>>(
        &self,
        latents: &Tensor,
        chunking: Chunking,
        timestep: f32,
        noise: Noise,
        each: impl FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<Noise, E> {
        match self {
            Decoder::Ltx(decoder) => decoder.frames(latents, chunking, timestep, noise, each),
        }
    }
}

/// What is done to a run's latents before they are decoded.
#[derive(Clone, Copy, Debug)]
pub struct DecoderInput {
    /// Share of the noise that decoders which expect some are given.
    pub noise: f64,
    /// How far tones are compressed, 0 to 1.
    pub tone_map: f64,
    pub recipe: Recipe,
}

impl DecoderInput {
    /// Denormalises latents for the decoder, with the noise that it expects mixed in and their tones compressed.
    /// - `latents`: (1, f, h, w, c), normalised, as is what comes back.
    pub fn apply(
        &self,
        config: &Config,
        latents: &Tensor,
        statistics: &LatentStatistics,
        noise: &mut Noise,
    ) -> Result<Tensor> {
        match config {
            Config::Ltx(config) => {
                let drawn = ltx::decoding::noise(&config.vae, latents, noise)?;
                let drawn = drawn.as_ref().map(|drawn| (drawn, self.noise));
                ltx::decoding::decoder_input(latents, statistics, drawn, self.tone_map, self.recipe)
            }
        }
    }
}

/// A transformer.
pub enum Transformer {
    Ltx(ltx::transformer::Transformer),
}

impl Transformer {
    /// - `resident`: blocks that are loaded once and stay, from the first on; the others are opened each time they run.
    pub fn load(config: &Config, vb: Vars, resident: usize) -> candle_core::Result<Self> {
        Ok(match config {
            Config::Ltx(config) => {
                Transformer::Ltx(ltx::transformer::Transformer::load_part(&config.transformer, vb, resident)?)
            }
        })
    }

    /// Reads the prompts that a run follows.
    /// - `positive`: text vectors of each scene, (1, m, channels). `negative`: where guidance asks for it. `cancel`: asked
    ///   before each block.
    pub fn denoiser<'a>(
        &'a self,
        config: &'a Config,
        positive: &[Tensor],
        negative: Option<&Tensor>,
        cancel: &Cancel,
    ) -> candle_core::Result<Denoiser<'a>> {
        Ok(match (self, config) {
            (Transformer::Ltx(transformer), Config::Ltx(config)) => Denoiser::Ltx(ltx::denoiser::Denoiser::new(
                transformer,
                &config.transformer,
                positive,
                negative,
                cancel,
            )?),
        })
    }
}

/// A transformer and the prompts that it follows.
pub enum Denoiser<'a> {
    Ltx(ltx::denoiser::Denoiser<'a>),
}

impl Denoiser<'_> {
    /// Draws a window's noise and lays what it holds out in it.
    /// - `scene`: which prompt it follows. `start`: latents to begin from, under noise; `None`: nothing but noise.
    pub fn window(
        &self,
        scene: usize,
        layout: &Layout,
        conditions: &[Condition],
        start: Option<&Start>,
        statistics: &LatentStatistics,
        noise: &mut Noise,
    ) -> Result<Window<'_>> {
        Ok(match self {
            Denoiser::Ltx(denoiser) => {
                Window::Ltx(denoiser.window(scene, layout, conditions, start, statistics, noise)?)
            }
        })
    }
}

/// A window of video on its way down the noise levels. The solver's loop asks it, step by step.
pub enum Window<'a> {
    Ltx(ltx::denoiser::Window<'a>),
}

impl Window<'_> {
    /// What its first step begins from: (1, tokens, c), f32.
    pub fn latents(&self) -> &Tensor {
        match self {
            Window::Ltx(window) => window.latents(),
        }
    }

    /// Puts noise on what is held, where the run wants that, before the step at `sigma`.
    pub fn noised(&self, state: State, sigma: f64) -> Result<State> {
        match self {
            Window::Ltx(window) => window.noised(state, sigma),
        }
    }

    /// Evaluates the transformer: the velocity of each token, f32.
    /// - `timestep`: of the step. `without`: blocks that self-attention is left out of.
    pub fn velocity(&self, latents: &Tensor, timestep: f32, prompt: Prompt, without: &[usize]) -> Result<Tensor> {
        match self {
            Window::Ltx(window) => window.velocity(latents, timestep, prompt, without),
        }
    }

    /// Takes step `i` of the schedule.
    pub fn advance(&self, state: State, velocity: &Tensor, schedule: &Schedule, i: usize) -> Result<State> {
        match self {
            Window::Ltx(window) => window.advance(state, velocity, schedule, i),
        }
    }

    /// The video's own latents, without what only conditioned it: (1, f, h, w, c).
    pub fn video(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Window::Ltx(window) => window.video(latents),
        }
    }
}

/// What goes between two passes, ready to be loaded.
pub enum Upscaler {
    Ltx(ltx::upscale::Upscaler),
}

impl Upscaler {
    /// Finds the upscaler of a run in two passes: the one asked for, or the model's own.
    /// - `entry`: the model's, where it has one. `channels`: of its latents. `pulled`: where an entry's file is, if it is here.
    /// - Errors when the model is run in two passes and its upscaler is not there: one pass is something to ask for.
    pub fn find(
        family: Family,
        request: &Request,
        entry: Option<&Entry>,
        channels: usize,
        convention: Convention,
        pulled: impl Fn(&Entry) -> Result<Option<PathBuf>>,
    ) -> Result<Option<Self>> {
        match family {
            Family::Ltx => {
                Ok(ltx::two_passes::upscaler(request, entry, channels, convention, pulled)?.map(Upscaler::Ltx))
            }
        }
    }

    /// Its sizes, and the bytes of its weights once they are loaded.
    pub fn size(&self) -> (UpscalerConfig, u64) {
        match self {
            Upscaler::Ltx(upscaler) => {
                let (config, bytes) = upscaler.size();
                (UpscalerConfig::Ltx(config), bytes)
            }
        }
    }

    /// Loads it, takes latents of the first pass to what the second begins from, and frees it.
    /// - `latents`: (1, f, h, w, c), normalised, of each window. `adain`: how far they are brought back to the first pass's mean and
    ///   deviation. `after`: called after each.
    pub fn upscale(
        &self,
        latents: &[Tensor],
        statistics: &LatentStatistics,
        adain: f64,
        device: &Device,
        after: impl FnMut() -> Result<(), Cancelled>,
    ) -> Result<Vec<Tensor>> {
        match self {
            Upscaler::Ltx(upscaler) => upscaler.upscale(latents, statistics, adain, device, after),
        }
    }
}
