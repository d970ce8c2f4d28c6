//! One job as asked for: what a person wrote, in the words of the flags, every range checked. It is serialisable, so it can be a
//! manifest, a recipe or a line of a job file; what belongs to the machine that runs it is its [`Host`]'s.

use crate::job::host::Host;
use crate::job::ranges::{self, MOST_FRAMES};
use crate::job::sources::{Lora, Sources};

use crate::job::convention::Convention;
use crate::job::tiles::Tiles;
use crate::platform::device::{Dtype, Quantize};
use crate::sampling::solver::Schedule;
use crate::video::resize::{Filter, Fit};
use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What was asked for; what is absent is decided by the model. Fields are named like the flags of `generate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    pub prompt: String,
    pub model: Option<String>,
    pub text_encoder: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub vae: Option<PathBuf>,
    pub quantize: Option<Quantize>,
    pub lora: Vec<Lora>,
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
    pub stg: Option<f64>,
    pub stg_blocks: Option<Vec<usize>>,
    pub cfg_star: Option<bool>,
    pub stochastic: Option<bool>,
    /// A file or a directory, or `none`.
    pub upscaler: Option<String>,
    pub second_sigmas: Option<Vec<f64>>,
    pub adain: Option<f64>,
    pub tone_map: Option<f64>,
    pub image: Option<PathBuf>,
    pub last_image: Option<PathBuf>,
    pub keyframe: Vec<Keyframe>,
    pub fit: Fit,
    pub image_crf: Option<u8>,
    pub image_noise: Option<f64>,
    pub prompt_at: Vec<Scene>,
    pub window: Option<usize>,
    pub no_drift_match: bool,
    pub decode_timestep: Option<f64>,
    pub decode_noise: Option<f64>,
    pub seed: Option<u64>,
    /// Times that the output is enlarged along each side; once where it is absent.
    pub scale: Option<usize>,
    pub scale_filter: Option<Filter>,
    pub quality: Option<u8>,
    pub dtype: Dtype,
    pub vae_tile: Tiles,
    /// Pixels that neighbouring tiles share.
    pub vae_overlap: Option<usize>,
}

/// `--keyframe FILE@FRAME[:X]`: what to hold, from which frame on, how strongly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyframe {
    pub file: PathBuf,
    /// Negative counts from the end: -1 is the last frame.
    pub frame: i64,
    pub strength: f64,
}

impl std::str::FromStr for Keyframe {
    type Err = String;

    /// Reads from the right, so that a file name may hold `@` and `:`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected FILE@FRAME or FILE@FRAME:STRENGTH, such as still.png@-1:0.8".to_string();
        let (file, place) = text.rsplit_once('@').ok_or_else(wrong)?;
        let (frame, strength) = place.split_once(':').map_or((place, None), |(frame, x)| (frame, Some(x)));
        let strength = strength.map_or(Ok(1.0), |x| x.parse::<f64>().map_err(|_| wrong()))?;
        let frame = frame.parse::<i64>().map_err(|_| wrong())?;
        if file.is_empty() {
            return Err(wrong());
        }
        ranges::check("keyframe", frame as f64).map_err(|e| format!("frame {frame}: {e}"))?;
        ranges::check("strength", strength).map_err(|e| format!("strength {strength}: {e}"))?;
        Ok(Self { file: file.into(), frame, strength })
    }
}

/// `--prompt-at TIME PROMPT`: another prompt from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Seconds from the start of what is made.
    pub at: f64,
    pub prompt: String,
}

impl Request {
    /// What `model` is put together from on a host.
    pub fn sources<'a>(&'a self, model: &'a str, host: &'a Host) -> Sources<'a> {
        Sources {
            model,
            text_encoder: self.text_encoder.as_deref(),
            tokenizer: self.tokenizer.as_deref(),
            vae: self.vae.as_deref(),
            quantize: self.quantize,
            loras: &self.lora,
            quantize_cache: host.quantize_cache.as_deref(),
            quantize_scratch: host.quantize_scratch.as_deref(),
        }
    }

    /// Whether there is a still or a clip to hold.
    pub fn conditioned(&self) -> bool {
        self.image.is_some() || self.last_image.is_some() || !self.keyframe.is_empty()
    }

    /// The frames that are asked for at `fps` a second; none where neither frames nor seconds are.
    /// - Errors where seconds come to more than a clip has.
    pub fn frames_at(&self, fps: f64) -> Result<Option<usize>> {
        let Some(seconds) = self.seconds else { return Ok(self.frames) };
        let frames = ((seconds * fps).round() as usize).max(1);
        ensure!(
            frames <= MOST_FRAMES,
            "--seconds {seconds} at {fps} frames a second are {frames} frames; at most {MOST_FRAMES} are made\n  fix: --seconds {} or less",
            (MOST_FRAMES as f64 / fps).floor().max(0.001)
        );
        Ok(Some(frames))
    }

    /// Checks every value that can be judged without the model.
    /// - Errors name the flag, what it was given and what it takes.
    pub fn check(&self) -> Result<()> {
        // without `..`: a new number cannot be forgotten here
        let Self {
            prompt: _,
            model: _,
            text_encoder: _,
            tokenizer: _,
            vae: _,
            quantize: _,
            lora,
            convention: _,
            negative: _,
            size,
            frames,
            seconds,
            fps,
            steps,
            sigmas,
            guidance,
            guidance_rescale,
            stg,
            stg_blocks,
            cfg_star: _,
            stochastic: _,
            upscaler: _,
            second_sigmas,
            adain,
            tone_map,
            image: _,
            last_image: _,
            keyframe,
            fit: _,
            image_crf,
            image_noise,
            prompt_at,
            window,
            no_drift_match: _,
            decode_timestep,
            decode_noise,
            seed: _, // any
            scale,
            scale_filter: _,
            quality,
            dtype: _,
            vae_tile,
            vae_overlap,
        } = self;
        let whole = |n: &Option<usize>| n.map(|n| n as f64);
        let pair = |pair: Option<(usize, usize)>| [pair.map(|(w, _)| w as f64), pair.map(|(_, h)| h as f64)];
        let tile = match vae_tile {
            Tiles::Of(width, height) => Some((*width, *height)),
            _ => None,
        };
        let (size, tile) = (pair(*size), pair(tile));
        let counts =
            [("frames", whole(frames)), ("steps", whole(steps)), ("window", whole(window)), ("scale", whole(scale))];
        let counts = counts.into_iter().chain([("vae-overlap", whole(vae_overlap))]);
        let bytes = [("image-crf", image_crf.map(f64::from)), ("quality", quality.map(f64::from))];
        let sides = [("size", size[0]), ("size", size[1]), ("vae-tile", tile[0]), ("vae-tile", tile[1])];
        let times = [("seconds", *seconds), ("fps", *fps)]
            .into_iter()
            .chain(prompt_at.iter().map(|s| ("prompt-at", Some(s.at))));
        let guided = [("guidance", *guidance), ("guidance-rescale", *guidance_rescale), ("stg", *stg)];
        let shares = [("adain", *adain), ("tone-map", *tone_map), ("image-noise", *image_noise)];
        let decoder = [("decode-timestep", *decode_timestep), ("decode-noise", *decode_noise)];
        let held = keyframe.iter().flat_map(|k| [("keyframe", Some(k.frame as f64)), ("strength", Some(k.strength))]);
        let added = lora.iter().map(|lora| ("lora", Some(lora.scale)));
        let numbers = counts.chain(bytes).chain(sides).chain(times).chain(guided).chain(shares).chain(decoder);
        for (flag, value) in numbers.chain(held).chain(added) {
            let Some(value) = value else { continue };
            ranges::check(flag, value).map_err(|e| anyhow!("--{flag} {value}: {e}"))?;
        }
        let blocks = stg_blocks.as_ref().map(|blocks| blocks.iter().map(|&n| n as f64).collect());
        for (flag, list) in [("sigmas", sigmas), ("second-sigmas", second_sigmas), ("stg-blocks", &blocks)] {
            let Some(list) = list else { continue };
            let name = || format!("--{flag} {}", list.iter().map(f64::to_string).collect::<Vec<_>>().join(","));
            ranges::check_list(flag, list.iter().copied()).map_err(|e| anyhow!("{}: {e}", name()))?;
            if flag == "stg-blocks" {
                continue;
            }
            let fix = || format!("--{flag} {}", falling(list, flag == "sigmas"));
            Schedule::explicit(list).map_err(|e| anyhow!("{}: {e}\n  fix: such as {}", name(), fix()))?;
            ensure!(
                flag != "second-sigmas" || list[0] < 1.0,
                "{}: it has to begin below 1, where something of the first pass is left\n  fix: such as {}",
                name(),
                fix()
            );
        }
        ensure!(frames.is_none() || seconds.is_none(), "--frames and --seconds say the same thing: give one of them");
        ensure!(steps.is_none() || sigmas.is_none(), "--steps and --sigmas say the same thing: give one of them");
        ensure!(
            prompt_at.windows(2).all(|w| w[0].at < w[1].at),
            "--prompt-at: the times have to rise, each after the one before"
        );
        Ok(())
    }
}

/// Noise levels that fall, as near to what was given as can be: sorted, each once, and none that starts from nothing.
/// - `from_noise`: whether 1 may be among them.
fn falling(sigmas: &[f64], from_noise: bool) -> String {
    let mut levels: Vec<f64> =
        sigmas.iter().copied().filter(|&level| level > 0.0 && (level < 1.0 || from_noise)).collect();
    levels.sort_by(|a, b| b.total_cmp(a));
    levels.dedup();
    if levels.is_empty() {
        levels = vec![0.9, 0.6, 0.3];
    }
    levels.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}
