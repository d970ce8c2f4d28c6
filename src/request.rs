//! One job, as asked for and as decided. A request is what a person wrote, in the words of the flags, every range checked;
//! it is serialisable, so it can be a manifest, a recipe or a line of a job file. Settings are what a run takes: the request,
//! filled up from the model's entry in the catalogue and the convention's defaults.

use crate::device::Dtype;
use crate::geometry::Extent;
use crate::models::ltx::Convention;
use crate::sampler::{Guidance, Schedule};
use crate::weights::catalogue::RunDefaults;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Sides and lengths beyond these are typing errors.
const MOST_PIXELS: usize = 16_384;
const MOST_FRAMES: usize = 100_000;
const MOST_STEPS: usize = 1000;

/// What was asked for; what is absent is decided by the model. Fields are named like the flags of `generate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    pub prompt: String,
    pub model: Option<String>,
    pub text_encoder: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub convention: Option<Convention>,
    pub negative: Option<String>,
    /// Width and height in pixels.
    pub size: Option<(usize, usize)>,
    pub frames: Option<usize>,
    pub seconds: Option<f64>,
    pub fps: Option<f64>,
    pub steps: Option<usize>,
    pub sigmas: Option<Vec<f64>>,
    pub guidance: Option<f64>,
    pub guidance_rescale: Option<f64>,
    pub image_noise: Option<f64>,
    pub decode_timestep: Option<f64>,
    pub decode_noise: Option<f64>,
    pub seed: Option<u64>,
    pub out: Option<String>,
    pub quality: Option<u8>,
    pub force: bool,
    pub device: Option<String>,
    pub dtype: Dtype,
}

impl Request {
    /// Checks every value that can be judged without the model.
    /// - Errors name the flag, what it was given and what it takes.
    pub fn check(&self) -> Result<()> {
        if let Some((width, height)) = self.size {
            let inside = |side: usize| (1..=MOST_PIXELS).contains(&side);
            ensure!(
                inside(width) && inside(height),
                "--size {width}x{height}: each side has to be 1 to {MOST_PIXELS} pixels"
            );
        }
        let frames = |n: usize, flag: &str| {
            ensure!((1..=MOST_FRAMES).contains(&n), "{flag}: a clip has 1 to {MOST_FRAMES} frames, not {n}");
            Ok(())
        };
        ensure!(
            self.frames.is_none() || self.seconds.is_none(),
            "--frames and --seconds say the same thing: give one of them"
        );
        ensure!(
            self.steps.is_none() || self.sigmas.is_none(),
            "--steps and --sigmas say the same thing: give one of them"
        );
        if let Some(n) = self.frames {
            frames(n, &format!("--frames {n}"))?;
        }
        let range = |value: Option<f64>, flag: &str, low: f64, high: f64| {
            let Some(x) = value else { return Ok(()) };
            ensure!(x.is_finite() && (low..=high).contains(&x), "{flag} {x}: it has to be {low} to {high}");
            Ok(())
        };
        range(self.fps, "--fps", 0.1, 1000.0)?;
        range(self.seconds, "--seconds", 0.001, 86_400.0)?;
        range(self.guidance, "--guidance", 0.0, 1000.0)?;
        range(self.guidance_rescale, "--guidance-rescale", 0.0, 1.0)?;
        range(self.image_noise, "--image-noise", 0.0, 1.0)?;
        range(self.decode_timestep, "--decode-timestep", 0.0, 1.0)?;
        range(self.decode_noise, "--decode-noise", 0.0, 1.0)?;
        if let Some(n) = self.steps {
            ensure!((1..=MOST_STEPS).contains(&n), "--steps {n}: it has to be 1 to {MOST_STEPS}");
        }
        if let Some(sigmas) = &self.sigmas {
            let shown = || format!("--sigmas {}", sigmas.iter().map(f64::to_string).collect::<Vec<_>>().join(","));
            Schedule::explicit(sigmas).map_err(|e| anyhow::anyhow!("{}: {e}", shown()))?;
        }
        if let Some(quality) = self.quality {
            ensure!((1..=100).contains(&quality), "--quality {quality}: it has to be 1 to 100");
        }
        Ok(())
    }
}

/// How the noise levels of a run are found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Levels {
    Steps(usize),
    Sigmas(Vec<f64>),
}

/// A run with nothing left open but what depends on the model's tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub prompt: String,
    /// `None`: guidance does not ask for it.
    pub negative: Option<String>,
    pub convention: Convention,
    pub clip: Extent,
    pub fps: f64,
    pub levels: Levels,
    pub guidance: f64,
    pub guidance_rescale: f64,
    pub decode_timestep: f64,
    pub decode_noise: f64,
    pub seed: u64,
    pub quality: u8,
}

/// Diffusers' own defaults.
/// - Source: diffusers `pipelines/ltx/pipeline_ltx.py` and `pipeline_ltx_condition.py`, `__call__`, at 58eb52c.
const DIFFUSERS: (Extent, f64, usize, f64) = (Extent { width: 704, height: 512, frames: 161 }, 25.0, 50, 3.0);
/// Visually lossless, or nearly.
const QUALITY: u8 = 85;

impl Settings {
    /// Fills a request up.
    /// - `model`: run defaults of the model's entry. `allowed`: noise levels that the checkpoint itself names.
    /// - Errors when the clip comes out with no or too many frames.
    pub fn decide(
        request: &Request,
        model: &RunDefaults,
        allowed: Option<&[f64]>,
        convention: Convention,
        seed: u64,
    ) -> Result<Self> {
        let (extent, fps, steps, guidance) = DIFFUSERS;
        let fps = request.fps.or(model.fps).unwrap_or(fps);
        let size = (model.width.unwrap_or(extent.width), model.height.unwrap_or(extent.height));
        let (width, height) = request.size.unwrap_or(size);
        let frames = match (request.frames, request.seconds) {
            (Some(n), _) => n,
            (None, Some(seconds)) => ((seconds * fps).round() as usize).max(1),
            (None, None) => model.frames.unwrap_or(extent.frames),
        };
        ensure!(
            frames <= MOST_FRAMES,
            "--seconds {} at {fps} frames a second are {frames} frames; at most {MOST_FRAMES} are made",
            request.seconds.unwrap_or(0.0)
        );
        let levels = match (request.steps, &request.sigmas) {
            (Some(n), _) => Levels::Steps(n),
            (None, Some(sigmas)) => Levels::Sigmas(sigmas.clone()),
            (None, None) => match (allowed, &model.sigmas) {
                (Some(sigmas), _) => Levels::Sigmas(sigmas.to_vec()),
                (None, Some(sigmas)) => Levels::Sigmas(sigmas.clone()),
                (None, None) => Levels::Steps(model.steps.unwrap_or(steps)),
            },
        };
        let guidance = request.guidance.or(model.guidance).unwrap_or(guidance);
        let decode_timestep = request.decode_timestep.or(model.decode_timestep).unwrap_or(0.0);
        // a given timestep takes its own noise along, unless the catalogue knows better for just that timestep
        let known_noise =
            model.decode_noise.filter(|_| request.decode_timestep.is_none_or(|t| Some(t) == model.decode_timestep));
        let negative = request.negative.clone().or(model.negative.clone()).unwrap_or_default();
        let guided = Guidance { scale: guidance, rescale: 0.0 }.active();
        Ok(Self {
            prompt: request.prompt.clone(),
            negative: guided.then_some(negative),
            convention,
            clip: Extent { width, height, frames },
            fps,
            levels,
            guidance,
            guidance_rescale: request.guidance_rescale.or(model.guidance_rescale).unwrap_or(0.0),
            decode_timestep,
            decode_noise: request.decode_noise.or(known_noise).unwrap_or(decode_timestep),
            seed,
            quality: request.quality.unwrap_or(QUALITY),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_through_json_unchanged() {
        let request = Request {
            prompt: "a boat".into(),
            size: Some((96, 64)),
            sigmas: Some(vec![1.0, 0.5]),
            ..Default::default()
        };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request);
    }

    #[test]
    fn ranges_are_checked() {
        let bad = [
            Request { size: Some((0, 64)), ..Default::default() },
            Request { frames: Some(0), ..Default::default() },
            Request { frames: Some(9), seconds: Some(1.0), ..Default::default() },
            Request { steps: Some(0), ..Default::default() },
            Request { sigmas: Some(vec![0.5, 0.7]), ..Default::default() },
            Request { sigmas: Some(vec![]), ..Default::default() },
            Request { sigmas: Some(vec![1.0, f64::NAN]), ..Default::default() },
            Request { fps: Some(0.0), ..Default::default() },
            Request { fps: Some(f64::INFINITY), ..Default::default() },
            Request { guidance: Some(-1.0), ..Default::default() },
            Request { guidance_rescale: Some(1.5), ..Default::default() },
            Request { decode_timestep: Some(2.0), ..Default::default() },
            Request { quality: Some(0), ..Default::default() },
        ];
        for request in bad {
            assert!(request.check().is_err(), "{request:?}");
        }
        assert!(Request::default().check().is_ok());
    }

    #[test]
    fn flags_win_over_the_catalogue_and_that_over_diffusers() {
        let model = RunDefaults {
            frames: Some(17),
            steps: Some(16),
            decode_timestep: Some(0.05),
            decode_noise: Some(0.025),
            ..Default::default()
        };
        let decide = |request: &Request| Settings::decide(request, &model, None, Convention::Condition, 1).unwrap();
        let plain = decide(&Request::default());
        assert_eq!((plain.clip.frames, plain.clip.width, plain.levels), (17, 704, Levels::Steps(16)));
        assert_eq!((plain.decode_timestep, plain.decode_noise), (0.05, 0.025));
        let asked = decide(&Request {
            seconds: Some(2.0),
            fps: Some(10.0),
            decode_timestep: Some(0.1),
            guidance: Some(1.0),
            ..Default::default()
        });
        assert_eq!((asked.clip.frames, asked.decode_noise, asked.negative), (20, 0.1, None));
    }
}
