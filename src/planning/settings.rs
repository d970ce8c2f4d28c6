//! What a run takes: the request, filled up from the model's entry in the catalogue and the convention's defaults.

use crate::hub::catalogue::RunDefaults;
use crate::job::convention::Convention;
use crate::job::geometry::Extent;
use crate::job::ranges::MOST_PIXELS;
use crate::job::recipe::Recipe;
use crate::job::request::{Request, Scene};
use crate::models::Family;
use crate::planning::passes::{self, Pass, Upscaling};
use crate::video::resize::Filter;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// A run with nothing left open but what depends on the model's tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The scenes in their order; the first begins at 0.
    pub scenes: Vec<Scene>,
    /// `None`: guidance does not ask for it.
    pub negative: Option<String>,
    pub family: Family,
    pub convention: Convention,
    pub recipe: Recipe,
    pub clip: Extent,
    pub fps: f64,
    /// One, or two with the upscaler between.
    pub passes: Vec<Pass>,
    pub upscaling: Upscaling,
    /// Whether each step draws fresh noise.
    pub stochastic: bool,
    pub image_noise: f64,
    pub image_crf: u8,
    /// Frames that the model makes at once; longer clips are made of overlapping windows.
    pub window: usize,
    pub drift_match: bool,
    pub decode_timestep: f64,
    pub decode_noise: f64,
    pub seed: u64,
    /// Times that the output is enlarged along each side.
    pub scale: usize,
    pub scale_filter: Filter,
    pub quality: u8,
}

/// What a run's settings are decided from.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub request: &'a Request,
    /// Run defaults of the model's entry.
    pub model: &'a RunDefaults,
    /// Noise levels that the checkpoint itself names.
    pub allowed: Option<&'a [f64]>,
    pub family: Family,
    pub convention: Convention,
    /// Width and height where none were asked for and a still or clip gives them.
    pub size: Option<(usize, usize)>,
    /// Whether an upscaler goes between two passes.
    pub two: bool,
    pub seed: u64,
}

/// Visually lossless, or nearly.
const QUALITY: u8 = 85;

impl Settings {
    /// Fills a request up.
    /// - Errors when the clip comes out with no or too many frames.
    pub fn decide(given: &Given) -> Result<Self> {
        let Given { request, model, allowed, family, convention, size, two, seed } = *given;
        let usual = family.defaults();
        let fps = request.fps.or(model.fps).unwrap_or(usual.fps);
        let (width, height) = request.size.or(size).unwrap_or_else(|| default_size(model, family));
        let frames = request.frames_at(fps)?.unwrap_or_else(|| model.frames.unwrap_or(usual.clip.frames));
        let scale = request.scale.unwrap_or(1);
        ensure!(
            width.max(height) * scale <= MOST_PIXELS,
            "--scale {scale}: {}x{} is more than {MOST_PIXELS} pixels a side\n  fix: --scale {}",
            width * scale,
            height * scale,
            (MOST_PIXELS / width.max(height)).max(1)
        );
        let recipe = Recipe::decide(request.convention, model.recipe);
        let passes = passes::Given { request, model, family, recipe, allowed, two }.passes()?;
        let decode_timestep = request.decode_timestep.or(model.decode_timestep).unwrap_or(0.0);
        // a given timestep takes its own noise along, unless the catalogue knows better for just that timestep
        let known_noise =
            model.decode_noise.filter(|_| request.decode_timestep.is_none_or(|t| Some(t) == model.decode_timestep));
        let negative = request.negative.clone().or(model.negative.clone()).unwrap_or_default();
        let guided = passes.iter().any(|pass| pass.guidance.needs_negative());
        let mut scenes = request.prompt_at.clone();
        if scenes.first().is_none_or(|scene| scene.at > 0.0) {
            scenes.insert(0, Scene { at: 0.0, prompt: request.prompt.clone() });
        }
        // what another recipe puts on stills is not taken along
        let own_noise = model.image_noise.filter(|_| recipe == model.recipe.unwrap_or_default());
        Ok(Self {
            scenes,
            negative: guided.then_some(negative),
            family,
            convention,
            recipe,
            clip: Extent { width, height, frames },
            fps,
            passes,
            upscaling: Upscaling::decide(request, model, family),
            stochastic: request.stochastic.or(model.stochastic).unwrap_or(false),
            image_noise: request.image_noise.or(own_noise).unwrap_or_else(|| family.image_noise(convention)),
            image_crf: image_crf(request, model),
            window: request.window.or(model.window).unwrap_or(usual.window),
            drift_match: !request.no_drift_match,
            decode_timestep,
            decode_noise: request.decode_noise.or(known_noise).unwrap_or(decode_timestep),
            seed,
            scale,
            scale_filter: request.scale_filter.unwrap_or_default(),
            quality: request.quality.unwrap_or(QUALITY),
        })
    }

    /// The clip as it is written.
    pub fn output(&self) -> Extent {
        let Extent { width, height, frames } = self.clip;
        Extent { width: width * self.scale, height: height * self.scale, frames }
    }

    /// Returns a clip that takes as much of a disk as the output at least: enlarged N times it has N² times the pixels and no
    /// more detail, which compresses to N times the bytes or more.
    pub fn least(&self, output: Extent) -> Extent {
        Extent { width: output.width / self.scale, ..output }
    }

    /// Bytes that a picture takes while it is enlarged and written; 0 where it is not.
    pub fn enlarging(&self) -> u64 {
        /// For each pixel of the output: it and what is half-way to it, of 3 bytes, and what a writer makes of it, of up to 4.
        const BYTES: u64 = 10;
        let Extent { width, height, .. } = self.output();
        if self.scale > 1 { BYTES * width as u64 * height as u64 } else { 0 }
    }

    /// Tokens that a prompt is cut to.
    pub fn max_tokens(&self) -> usize {
        self.family.max_tokens(self.recipe, self.convention)
    }

    /// Tokens that the text encoder runs over, for a prompt of `tokens`.
    pub fn encoded_tokens(&self, tokens: usize) -> usize {
        self.family.encoded_tokens(self.recipe, self.convention, tokens)
    }
}

/// Blur and compression of the pictures that a run holds; 0 is none.
pub fn image_crf(request: &Request, model: &RunDefaults) -> u8 {
    request.image_crf.or(model.image_crf.map(|crf| crf as u8)).unwrap_or(0)
}

/// Width and height of a run that says neither.
pub fn default_size(model: &RunDefaults, family: Family) -> (usize, usize) {
    let usual = family.defaults().clip;
    (model.width.unwrap_or(usual.width), model.height.unwrap_or(usual.height))
}

#[cfg(test)]
mod tests;
