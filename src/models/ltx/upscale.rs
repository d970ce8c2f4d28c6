//! The upscaler that goes between two passes: what `--upscaler` names, opened and checked, and what is done to the latents that
//! come out of it.

use crate::models::latents::LatentStatistics;
use crate::models::ltx::upscaler::{Upscaler as Network, UpscalerConfig};
use crate::platform::cancel::Cancelled;
use crate::weights::open::{Tensors, weight_files};
use crate::weights::{part_folder, read_json};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};

/// An upscaler, ready to be loaded.
pub struct Upscaler {
    config: UpscalerConfig,
    tensors: Tensors,
}

impl Upscaler {
    /// - `path`: Lightricks' single file, or a directory in diffusers layout: the network's own or the pipeline's.
    ///   `channels`: of the latents that it is for.
    /// - Errors on whatever is no upscaler of space for such latents; nothing is loaded.
    pub fn open(path: &Path, channels: usize) -> Result<Self> {
        const FIX: &str =
            "fix: give --upscaler a file such as ltxv-spatial-upscaler-0.9.8.safetensors, or `none` for one pass";
        let shown = path.display();
        ensure!(path.exists(), "there is no upscaler at `{shown}`: no such file or directory\n  {FIX}");
        let nested = part_folder(path, "latent_upsampler");
        let dir = nested.as_deref().unwrap_or(path);
        let files = if dir.is_dir() { weight_files(dir)? } else { vec![path.to_path_buf()] };
        let tensors = Tensors::open(&files)?;
        let json: PathBuf = dir.join("config.json");
        let config = if dir.is_dir() && json.is_file() {
            UpscalerConfig::parse(&read_json(&json)?, &format!("`{}`", json.display()))
        } else if let Some(text) = tensors.metadata("config") {
            let what = format!("`{shown}`: `config` in its header");
            let json = serde_json::from_str(text).with_context(|| format!("{what} is not JSON"))?;
            UpscalerConfig::parse(&json, &what)
        } else {
            UpscalerConfig::from_shapes(|name| tensors.shape(name).map(<[usize]>::to_vec), &format!("`{shown}`"))
        };
        let config = config.map_err(|error| {
            let said = error.to_string();
            anyhow::anyhow!("--upscaler: {}\n  {FIX}", said.lines().next().unwrap_or_default())
        })?;
        ensure!(
            config.enlarges_space && !config.enlarges_time,
            "--upscaler: `{shown}` enlarges {}, and two passes need one that enlarges space alone\n  {FIX}",
            if config.enlarges_space { "space and time" } else { "time" }
        );
        ensure!(
            config.channels == channels,
            "--upscaler: `{shown}` reads latents of {} channels, and this model's have {channels}\n  {FIX}",
            config.channels
        );
        tensors.check(|vb| Network::load(&config, vb))?;
        Ok(Self { config, tensors })
    }

    /// Its sizes, and the bytes of its weights once they are loaded.
    pub fn size(&self) -> (UpscalerConfig, u64) {
        (self.config.clone(), (self.tensors.elements() * DType::F32.size_in_bytes()) as u64)
    }

    /// Loads the network, takes latents of the first pass to what the second begins from, sides twice as long, and frees it. It is
    /// small and comes in f32, so it runs in f32, whatever the model runs in.
    /// - `latents`: (1, f, h, w, c), normalised, of each window. `factor`: of [`adain`]. `after`: called after each.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `LTXMultiScalePipeline`, at 5260738.
    pub fn upscale(
        &self,
        latents: &[Tensor],
        statistics: &LatentStatistics,
        factor: f64,
        device: &Device,
        mut after: impl FnMut() -> Result<(), Cancelled>,
    ) -> Result<Vec<Tensor>> {
        let network = Network::load(&self.config, self.tensors.load(Some(DType::F32), DType::F32, device))?;
        let mut all = vec![];
        for latents in latents {
            let large = statistics.normalise(&network.forward(&statistics.denormalise(latents)?)?)?;
            all.push(adain(&large, latents, factor)?);
            after()?;
        }
        Ok(all)
    }
}

/// Brings each channel to the mean and deviation that it has in `reference`.
/// - `latents`, `reference`: (1, f, h, w, c) f32, sizes may differ. `factor`: how far, 0 to 1; 0 changes nothing.
/// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `adain_filter_latent`, at 5260738. It changes nothing whether latents
///   are normalised or not.
pub fn adain(latents: &Tensor, reference: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 0.0 {
        return Ok(latents.clone());
    }
    let statistics = |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let (n, c) = (x.elem_count() / x.dim(4)?, x.dim(4)?);
        let x = x.reshape((n, c))?;
        let mean = x.mean_keepdim(0)?;
        let square = x.broadcast_sub(&mean)?.sqr()?.sum_keepdim(0)?;
        Ok((mean, (square / (n.max(2) - 1) as f64)?.sqrt()?)) // (1, c) each
    };
    let ((mean, deviation), (wanted, spread)) = (statistics(latents)?, statistics(reference)?);
    let even = latents.broadcast_sub(&mean)?.broadcast_div(&deviation)?;
    let brought = even.broadcast_mul(&spread)?.broadcast_add(&wanted)?;
    Ok(if factor < 0.5 {
        (latents + ((&brought - latents)? * factor)?)?
    } else {
        (&brought - ((&brought - latents)? * (1.0 - factor))?)?
    })
}

/// Takes the strongest values back, smoothly.
/// - `latents`: any shape, normalised, f32. `compression`: 0 to 1; 0 changes nothing.
/// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `tone_map_latents`, at 5260738.
pub fn tone_map(latents: &Tensor, compression: f64) -> Result<Tensor> {
    if compression == 0.0 {
        return Ok(latents.clone());
    }
    const STRONGEST: f64 = 0.75;
    let scale = compression * STRONGEST;
    let strong = candle_nn::ops::sigmoid(&((latents.abs()? - 1.0)? * (4.0 * scale))?)?;
    Ok((latents * (1.0 - (strong * (0.8 * scale))?)?)?)
}
