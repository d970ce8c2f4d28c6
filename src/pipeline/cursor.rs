//! Where a run stands while it denoises: all that has to be on disk for it to go on later as if it had never stopped.

use crate::job::windows::ChannelStatistics;
use crate::sampling::noise::Noise;
use crate::sampling::solver::State;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A run's position, and what it has made so far.
#[derive(Clone)]
pub struct Cursor {
    pub position: Position,
    /// The generator as it was when the window began: with it the window is laid out again as it was.
    pub noise_at_window_start: Noise,
    /// The window's tokens and the generator after `place.step` steps; `None`: the window is not noise_at_window_start.
    pub state: Option<State>,
    /// Latents made so far of the scene that is under way: (1, f, h, w, c).
    pub made: Option<Tensor>,
    /// What windows after a scene's first are brought to.
    pub reference: Option<ChannelStatistics>,
    /// Latents of the scenes that this pass is done with: (1, f, h, w, c) each.
    pub scenes: Vec<Tensor>,
    /// What the windows of this pass begin from, in order; empty: from noise alone.
    pub starts: Vec<Tensor>,
}

/// Which step of which window comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub pass: usize,
    /// Counted over all scenes of the pass.
    pub window: usize,
    pub step: usize,
}

/// What is no tensor in a cursor.
#[derive(Serialize, Deserialize)]
struct Header {
    position: Position,
    noise_at_window_start: Noise,
    noise: Option<Noise>,
}

/// The key of the header among a file's metadata.
const KEY: &str = "cursor";

impl Cursor {
    /// The start of a run.
    pub fn start(seed: u64) -> Self {
        Self {
            position: Position::default(),
            noise_at_window_start: Noise::new(seed),
            state: None,
            made: None,
            reference: None,
            scenes: vec![],
            starts: vec![],
        }
    }

    /// Writes the position as a safetensors file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut tensors: Vec<(String, &Tensor)> = vec![];
        tensors.extend(self.state.iter().map(|state| ("state".to_string(), &state.latents)));
        tensors.extend(self.made.iter().map(|made| ("made".to_string(), made)));
        if let Some(ChannelStatistics { mean, std }) = &self.reference {
            tensors.extend([("reference.mean".to_string(), mean), ("reference.std".to_string(), std)]);
        }
        for (name, all) in [("scenes", &self.scenes), ("starts", &self.starts)] {
            tensors.extend(all.iter().enumerate().map(|(i, x)| (format!("{name}.{i}"), x)));
        }
        let noise = self.state.as_ref().map(|state| state.noise.clone());
        let header =
            Header { position: self.position, noise_at_window_start: self.noise_at_window_start.clone(), noise };
        let metadata = HashMap::from([(KEY.to_string(), serde_json::to_string(&header)?)]);
        Ok(safetensors::serialize(tensors, Some(metadata))?)
    }

    /// Reads what [`Cursor::to_bytes`] wrote.
    /// - Errors on bytes that are none of it.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let header: Header = serde_json::from_str(header.context("there is no position of a run in it")?)?;
        let mut tensors = candle_core::safetensors::load_buffer(bytes, device)?;
        let mut list =
            |name: &str| -> Vec<Tensor> { (0..).map_while(|i| tensors.remove(&format!("{name}.{i}"))).collect() };
        let (scenes, starts) = (list("scenes"), list("starts"));
        let state = match (tensors.remove("state"), header.noise) {
            (Some(latents), Some(noise)) => Some(State { latents, noise }),
            (None, None) => None,
            _ => anyhow::bail!("a window under way has its tokens and its generator, or neither"),
        };
        let reference = match (tensors.remove("reference.mean"), tensors.remove("reference.std")) {
            (Some(mean), Some(std)) => Some(ChannelStatistics { mean, std }),
            _ => None,
        };
        let made = tensors.remove("made");
        ensure!(tensors.is_empty(), "there is more in it than a position: {:?}", tensors.keys());
        Ok(Self {
            position: header.position,
            noise_at_window_start: header.noise_at_window_start,
            state,
            made,
            reference,
            scenes,
            starts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(x: &Tensor) -> Vec<u32> {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn bytes_hold_every_part() -> Result<()> {
        let mut noise = Noise::new(7);
        let mut tensor = |shape: &[usize]| Tensor::from_vec(noise.normal(shape.iter().product()), shape, &Device::Cpu);
        let state = State { latents: tensor(&[1, 6, 5])?, noise: Noise::new(3) };
        let reference = ChannelStatistics { mean: tensor(&[1, 1, 5])?, std: tensor(&[1, 1, 5])? };
        let scenes = vec![tensor(&[1, 2, 1, 3, 5])?];
        let starts = vec![tensor(&[1, 1, 2, 3, 5])?, tensor(&[1, 3, 2, 3, 5])?];
        let mut noise_at_window_start = Noise::new(9);
        noise_at_window_start.normal(3); // one is spare
        let cursor = Cursor {
            position: Position { pass: 1, window: 2, step: 3 },
            noise_at_window_start,
            state: Some(state),
            made: Some(tensor(&[1, 4, 1, 3, 5])?),
            reference: Some(reference),
            scenes,
            starts,
        };
        let back = Cursor::from_bytes(&cursor.to_bytes()?, &Device::Cpu)?;
        assert_eq!((back.position, &back.noise_at_window_start), (cursor.position, &cursor.noise_at_window_start));
        let parts = |cursor: &Cursor| {
            let Cursor { state, made, reference, scenes, starts, .. } = cursor;
            let (state, reference) = (state.as_ref().unwrap(), reference.as_ref().unwrap());
            let mut all = vec![&state.latents, made.as_ref().unwrap(), &reference.mean, &reference.std];
            all.extend(scenes.iter().chain(starts));
            let noise = state.noise.clone();
            (noise, all.into_iter().map(|x| (x.dims().to_vec(), bits(x))).collect::<Vec<_>>())
        };
        assert!(parts(&back) == parts(&cursor));

        let fresh = Cursor::from_bytes(&Cursor::start(5).to_bytes()?, &Device::Cpu)?;
        assert!(
            fresh.state.is_none()
                && fresh.made.is_none()
                && fresh.scenes.is_empty()
                && fresh.noise_at_window_start == Noise::new(5)
        );
        for bad in [
            &b""[..],
            b"{}",
            &cursor.to_bytes()?[..40],
            &safetensors::serialize([("x", &Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?)], None)?,
        ] {
            assert!(Cursor::from_bytes(bad, &Device::Cpu).is_err());
        }
        Ok(())
    }
}
