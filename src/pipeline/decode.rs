//! The VAE over whole clips: pictures to numbers and back, in groups of frames, in tiles where memory asks for it, and once more
//! in smaller tiles where a device ran out of memory.

use crate::job::geometry::{Extent, Geometry};
use crate::models::latents::Posterior;
use crate::models::networks::{Decoder, Encoder};
use crate::nn::tiles::{Tile, Tiling, assemble};
use crate::planning::cut::{VaeChunking, smaller};
use crate::platform::cancel::Cancelled;
use crate::platform::fault::{Fault, Marked, out_of_memory};
use crate::sampling::noise::Noise;
use crate::video::Frame;
use crate::video::resize::{bilinear, bilinear_of};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// 8-bit pictures -> (1, f, h, w, 3) in [-1, 1].
/// - `size`: width and height; pictures of another size are brought to it. `window`: left, top, width and height of what is
///   wanted of them.
fn numbers(frames: &[Frame], size: (usize, usize), window: [usize; 4], device: &Device) -> candle_core::Result<Tensor> {
    let [left, top, width, height] = window;
    let number = |v: u8| v as f32 / 255.0 * 2.0 - 1.0;
    let mut values = vec![0f32; frames.len() * height * width * 3];
    let row = |y: usize| ((top + y) * size.0 + left) * 3;
    if frames.iter().all(|frame| (frame.width, frame.height) == size) {
        values.par_chunks_mut(width * 3).enumerate().for_each(|(i, to)| {
            let from = &frames[i / height].rgb[row(i % height)..];
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = number(from));
        });
    } else {
        for (frame, to) in frames.iter().zip(values.chunks_mut(height * width * 3)) {
            let all = bilinear_of(&frame.rgb, (frame.width, frame.height), size, number);
            to.chunks_mut(width * 3).enumerate().for_each(|(y, to)| to.copy_from_slice(&all[row(y)..][..width * 3]));
        }
    }
    Tensor::from_vec(values, (1, frames.len(), height, width, 3), &Device::Cpu)?.to_device(device)
}

/// [-1, 1] -> 8 bits.
fn eight_bits(v: f32) -> u8 {
    ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// (1, f, H, W, 3) in [-1, 1] -> at most `most` 8-bit pictures, brought to `legal` and cropped to the centre.
fn pictures(pixels: &Tensor, legal: Extent, clip: Extent, most: usize) -> candle_core::Result<Vec<Frame>> {
    check_numbers(pixels)?;
    let (_, frames, height, width, _) = pixels.dims5()?;
    if !pixels.device().is_cpu() && (width, height) == (legal.width, legal.height) {
        // four times less to copy
        let units = ((pixels.to_dtype(DType::F32)? * 127.5)? + 127.5)?.clamp(0f32, 255f32)?;
        let values = (units + 0.5)?.floor()?.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?;
        let all = values.par_chunks(height * width * 3).take(frames.min(most));
        return Ok(all.map(|frame| cropped(frame, width, height, clip, |v| v)).collect());
    }
    let values = pixels.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if (width, height) == (legal.width, legal.height) {
        let all = values.par_chunks(height * width * 3).take(frames.min(most));
        return Ok(all.map(|frame| cropped(frame, width, height, clip, eight_bits)).collect());
    }
    let all = values.chunks(height * width * 3).take(frames.min(most));
    Ok(all.map(|frame| brought(frame, (width, height), legal, clip)).collect())
}

/// - Errors on pixels that are no numbers: rounded to 8 bits they would be black.
fn check_numbers(pixels: &Tensor) -> candle_core::Result<()> {
    if pixels.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(());
    }
    // found only by computing, so it is a run that failed
    Err(Marked::new(
        Fault::Machine,
        "the VAE made values that are no numbers\n  fix: use other weights: these are damaged",
    )
    .into())
}

/// A picture of another size.
fn brought(values: &[f32], from: (usize, usize), legal: Extent, clip: Extent) -> Frame {
    let units: Vec<f32> = values.iter().map(|v| (v * 0.5 + 0.5).clamp(0.0, 1.0)).collect();
    let units = bilinear(&units, from, (legal.width, legal.height));
    cropped(&units, legal.width, legal.height, clip, |v| (v * 255.0).round_ties_even() as u8)
}

/// The middle of a picture of width x height.
fn cropped<T: Copy>(values: &[T], width: usize, height: usize, clip: Extent, to: impl Fn(T) -> u8) -> Frame {
    let (left, top) = ((width - clip.width) / 2, (height - clip.height) / 2);
    let mut rgb = Vec::with_capacity(clip.width * clip.height * 3);
    for y in top..top + clip.height {
        rgb.extend(values[(y * width + left) * 3..][..clip.width * 3].iter().map(|&v| to(v)));
    }
    Frame { width: clip.width, height: clip.height, rgb }
}

/// A clip to encode.
pub struct Pixels<'a> {
    /// 1 + k frames a latent frame; those of another size are brought to it.
    pub frames: &'a [Frame],
    /// Width and height.
    pub size: (usize, usize),
    pub geometry: Geometry,
}

/// Encodes a clip.
/// - `after`: called with the number of frames done; an error of it ends the work.
pub fn encode(
    encoder: &Encoder,
    clip: &Pixels,
    cut: &VaeChunking,
    device: &Device,
    mut after: impl FnMut(usize) -> Result<(), Cancelled>,
) -> Result<Posterior> {
    let Pixels { frames, size, geometry } = *clip;
    let ((width, height), space) = (size, geometry.space);
    let read = |window| move |first, count| numbers(&frames[first..first + count], size, window, device);
    let tiling = cut.tiling.filter(|tiling| !tiling.is_whole(height / space, width / space));
    let Some(tiling) = tiling else {
        let moments =
            encoder.moments(frames.len(), cut.chunking.latent_frames, read([0, 0, width, height]), &mut after)?;
        return Ok(encoder.posterior(&moments)?);
    };
    let size = [geometry.latent_frame(frames.len() - 1) + 1, height / space, width / space, encoder.moment_channels()];
    let mut counter = Shares::new(&tiling, size[1], size[2]);
    let values = assemble(&tiling, 1, size, &|x| x, |tile, put| {
        let window = [tile.x, tile.y, tile.width, tile.height].map(|n| n * space);
        let area = tile.width * tile.height;
        let moments = encoder
            .moments(frames.len(), cut.chunking.latent_frames, read(window), |done| after(counter.add(done, area)))?;
        put(0, &moments)
    })?;
    let [f, h, w, c] = size;
    Ok(encoder.posterior(&Tensor::from_vec(values, (1, f, h, w, c), device)?)?)
}

/// A clip to decode.
pub struct Latents<'a> {
    /// (1, f, h, w, c), denormalised.
    pub latents: &'a Tensor,
    pub geometry: Geometry,
    /// The size that pictures are brought to.
    pub legal: Extent,
    /// The size that they are then cropped to, and how many of them are wanted.
    pub clip: Extent,
    /// For decoders that take one.
    pub timestep: f32,
}

/// Decodes a clip; hands its frames to `sink` in their order, and returns how many there were.
/// - `noise`: generator for what the decoder of 0.9.1 adds between its layers. `after`: called with the number of frames done; an error of it ends the work.
pub fn decode(
    decoder: &Decoder,
    of: &Latents,
    cut: &VaeChunking,
    noise: Noise,
    mut sink: impl FnMut(Frame) -> Result<()>,
    mut after: impl FnMut(usize) -> Result<(), Cancelled>,
) -> Result<usize> {
    let Latents { latents, geometry, legal, clip, timestep } = *of;
    let (_, f, h, w, _) = latents.dims5()?;
    let mut made = 0;
    let Some(tiling) = cut.tiling.filter(|tiling| !tiling.is_whole(h, w)) else {
        decoder.frames(latents, cut.chunking, timestep, noise, |pixels| {
            for frame in pictures(&pixels, legal, clip, clip.frames - made)? {
                sink(frame)?;
                made += 1;
                after(1)?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        return Ok(made);
    };
    let (height, width) = (h * geometry.space, w * geometry.space);
    let frames = clip.frames.min((f - 1) * geometry.time + 1);
    let mut counter = Shares::new(&tiling, h, w);
    let mut noise = Some(noise);
    let mut tile = |tile: Tile, put: &mut dyn FnMut(usize, &Tensor) -> candle_core::Result<()>| {
        let part = latents.narrow(2, tile.y, tile.height)?.narrow(3, tile.x, tile.width)?.contiguous()?;
        let mut first = 0;
        let drawn = noise.take().unwrap_or_else(|| Noise::new(0));
        let left = decoder.frames(&part, cut.chunking, timestep, drawn, |pixels| {
            check_numbers(&pixels)?;
            put(first, &pixels)?;
            let done = pixels.dim(1)?.min(frames.saturating_sub(first));
            first += pixels.dim(1)?;
            after(counter.add(done, tile.width * tile.height))?;
            Ok::<_, candle_core::Error>(())
        })?;
        noise = Some(left); // the next tile draws on
        Ok(())
    };
    let size = [frames, height, width, 3];
    let mut hand = |frame| {
        made += 1;
        sink(frame)
    };
    if (width, height) == (legal.width, legal.height) {
        let values = assemble(&tiling, geometry.space, size, &eight_bits, |t, put| tile(t, put))?;
        values.chunks(height * width * 3).try_for_each(|frame| hand(cropped(frame, width, height, clip, |v| v)))?;
    } else {
        let values = assemble(&tiling, geometry.space, size, &|v| v, |t, put| tile(t, put))?;
        values.chunks(height * width * 3).try_for_each(|f| hand(brought(f, (width, height), legal, clip)))?;
    }
    Ok(made)
}

/// Turns parts of frames into whole ones, for progress.
struct Shares {
    all: usize,
    area: usize,
    said: usize,
}

impl Shares {
    fn new(tiling: &Tiling, height: usize, width: usize) -> Self {
        let tiles = tiling.tiles(height, width);
        Self { all: tiles.iter().flatten().map(|tile| tile.width * tile.height).sum(), area: 0, said: 0 }
    }

    /// `frames` more are done of a tile of this area: how many whole frames that adds.
    fn add(&mut self, frames: usize, area: usize) -> usize {
        self.area += frames * area;
        let whole = self.area / self.all;
        let more = whole - self.said;
        self.said = whole;
        more
    }
}

/// Tries a cut, and smaller tiles for as long as the device runs out of memory.
/// - `height`, `width`: of the picture, in latents. `attempt`: told how to cut. `again`: told of each new try.
pub fn with_less<T>(
    cut: VaeChunking,
    height: usize,
    width: usize,
    mut attempt: impl FnMut(&VaeChunking) -> Result<T>,
    mut again: impl FnMut(&Tiling),
) -> Result<T> {
    let mut now = VaeChunking { ..cut };
    loop {
        let error = match attempt(&now) {
            Ok(done) => return Ok(done),
            Err(error) if out_of_memory(&error) => error,
            Err(error) => return Err(error),
        };
        now.chunking.latent_frames = 1;
        match smaller(now.tiling, height, width) {
            Some(tiling) => now.tiling = Some(tiling),
            None => return Err(error),
        }
        now.tiling.iter().for_each(&mut again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::stream::Chunking;
    use anyhow::{anyhow, bail};

    #[test]
    fn a_full_device_gets_smaller_tiles() {
        let mut tried = vec![];
        let done = with_less(
            VaeChunking { chunking: Chunking { latent_frames: 3, slices: 1 }, tiling: None },
            16,
            24,
            |cut| {
                tried.push(*cut);
                match cut.tiling {
                    Some(tiling) if tiling.width * tiling.height <= 100 => Ok(tiling),
                    _ => bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
                }
            },
            |_| (),
        );
        assert_eq!(done.unwrap(), Tiling { height: 9, width: 10, overlap: 2 });
        assert_eq!(tried[0], VaeChunking { chunking: Chunking { latent_frames: 3, slices: 1 }, tiling: None });
        let chunking = Chunking { latent_frames: 1, slices: 1 };
        assert_eq!(tried[1], VaeChunking { chunking, tiling: Some(Tiling { height: 16, width: 14, overlap: 4 }) });
        assert_eq!(tried.len(), 4); // whole; 1 x 2; 2 x 2; 2 x 3
    }

    #[test]
    fn other_errors_are_not_tried_again_and_the_smallest_tiles_are_the_last() {
        let mut tries = 0;
        let mut run = |text: &'static str| {
            with_less(
                VaeChunking { chunking: Chunking { latent_frames: 1, slices: 1 }, tiling: None },
                9,
                9,
                |_| {
                    tries += 1;
                    Err::<(), _>(anyhow!(text))
                },
                |_| (),
            )
        };
        assert!(run("no such file").is_err());
        assert!(run("out of memory").is_err());
        assert_eq!(tries, 1 + 5); // whole; 1 x 2; 2 x 2; 2 x 3; 3 x 3 tiles of 4
    }

    #[test]
    fn parts_of_frames_add_up() {
        let tiling = Tiling { height: 4, width: 4, overlap: 1 };
        let mut shares = Shares::new(&tiling, 7, 10);
        let mut sum = 0;
        for tile in tiling.tiles(7, 10).into_iter().flatten() {
            for frames in [1, 8, 8] {
                sum += shares.add(frames, tile.width * tile.height);
            }
        }
        assert_eq!(sum, 17);
    }

    #[test]
    fn pictures_go_through_numbers_unchanged() -> Result<()> {
        let frame = |seed: usize| Frame { width: 5, height: 3, rgb: (0..45).map(|i| (i * 7 + seed) as u8).collect() };
        let frames = [frame(1), frame(2)];
        let [whole, part] = [(5, 3), (3, 1)].map(|(width, height)| Extent { width, height, frames: 2 });
        let all = numbers(&frames, (5, 3), [0, 0, 5, 3], &Device::Cpu)?;
        assert_eq!(pictures(&all, whole, whole, 9)?, frames);
        let middle = numbers(&frames, (5, 3), [1, 1, 3, 1], &Device::Cpu)?;
        let cropped = pictures(&all, whole, part, 9)?;
        assert_eq!(pictures(&middle, part, part, 9)?, cropped);
        Ok(())
    }
}
