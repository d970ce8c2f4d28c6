//! Pictures to the model's size: Pillow's 8-bit Lanczos to the byte, the three ways to meet another aspect, and the
//! official preparation of stills.

mod bilinear;

use crate::video::Frame;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::f64::consts::PI;

pub use bilinear::{bilinear, bilinear_of};

/// How a picture meets a frame of another aspect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The largest centred part of the frame's aspect.
    #[default]
    Crop,
    /// All of it, out of proportion.
    Stretch,
    /// All of it, in proportion, between black borders.
    Pad,
}

/// How a picture is enlarged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Smooth.
    #[default]
    Lanczos,
    /// Each pixel becomes a square.
    Nearest,
}

/// Weights are whole numbers of 1/2^22.
const PRECISION: u32 = 22;

/// For one output pixel: the first input and the weights from there on.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn kernel(t: f64) -> f64 {
    let sinc = |t: f64| if t == 0.0 { 1.0 } else { (t * PI).sin() / (t * PI) };
    if (-3.0..3.0).contains(&t) { sinc(t) * sinc(t / 3.0) } else { 0.0 }
}

/// - Source: Pillow `src/libImaging/Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`. Its order of
///   operations is kept, as the last bit counts.
fn windows(inputs: usize, outputs: usize) -> Vec<Window> {
    let scale = inputs as f64 / outputs as f64;
    let stretch = scale.max(1.0);
    let support = 3.0 * stretch;
    let one = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(inputs);
        let weight = |x: usize| kernel((x as f64 + first as f64 - centre + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (0..end - first).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let weight = weight / sum * f64::from(1 << PRECISION);
            (if weight < 0.0 { weight - 0.5 } else { weight + 0.5 }) as i32
        };
        Window { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..outputs).map(one).collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Half of what the last bit is worth.
const HALF: i32 = 1 << (PRECISION - 1);

fn across(frame: &Frame, width: usize) -> Frame {
    let windows = windows(frame.width, width);
    let mut rgb = vec![0; width * frame.height * 3];
    let rows = rgb.par_chunks_mut(width * 3).zip(frame.rgb.par_chunks(frame.width * 3));
    rows.for_each(|(out, row)| {
        let pixels = row.as_chunks::<3>().0;
        for (out, window) in out.as_chunks_mut::<3>().0.iter_mut().zip(&windows) {
            let mut sums = [HALF; 3];
            for (pixel, weight) in pixels[window.first..].iter().zip(&window.weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &c)| *sum += i32::from(c) * weight);
            }
            *out = sums.map(clip);
        }
    });
    Frame { width, height: frame.height, rgb }
}

fn down(frame: &Frame, height: usize) -> Frame {
    let windows = windows(frame.height, height);
    let stride = frame.width * 3;
    let mut rgb = vec![0; stride * height];
    rgb.par_chunks_mut(stride).zip(&windows).for_each_init(
        || vec![0; stride],
        |sums, (out, window)| {
            sums.fill(HALF);
            for (row, weight) in frame.rgb[window.first * stride..].chunks_exact(stride).zip(&window.weights) {
                sums.iter_mut().zip(row).for_each(|(sum, &c)| *sum += i32::from(c) * weight);
            }
            out.iter_mut().zip(sums.iter()).for_each(|(out, &sum)| *out = clip(sum));
        },
    );
    Frame { width: frame.width, height, rgb }
}

/// Pillow 13's `resize((width, height), LANCZOS)` on 8-bit RGB, the same bytes on any number of threads: one axis, then
/// the other, rounded to 8 bits after each; an axis that does not change is left alone.
/// - A side of 0 gives an empty frame.
pub fn lanczos(frame: &Frame, width: usize, height: usize) -> Frame {
    if [frame.width, frame.height, width, height].contains(&0) {
        return Frame { width, height, rgb: vec![0; width * height * 3] };
    }
    // Where the height loses more than twice what the width does, as Pillow has it since 13; before, always across first.
    let lost = frame.height.saturating_sub(height) as i64;
    let down_first = lost > 0 && lost > 2 * (frame.width as i64 - width as i64);
    match (width == frame.width, height == frame.height) {
        (true, true) => frame.clone(),
        (true, false) => down(frame, height),
        (false, true) => across(frame, width),
        (false, false) if down_first => across(&down(frame, height), width),
        (false, false) => down(&across(frame, width), height),
    }
}

/// Enlarges a picture `times` times along each side.
pub fn enlarge(frame: Frame, times: usize, filter: Filter) -> Frame {
    let (width, height) = (frame.width * times, frame.height * times);
    match filter {
        _ if times == 1 => frame,
        Filter::Lanczos => lanczos(&frame, width, height),
        Filter::Nearest => {
            let mut rgb = vec![0; width * height * 3];
            let rows =
                rgb.par_chunks_mut((width * 3 * times).max(1)).zip(frame.rgb.par_chunks((frame.width * 3).max(1)));
            rows.for_each(|(out, row)| {
                let (first, others) = out.split_at_mut(width * 3);
                for (square, pixel) in first.chunks_exact_mut(3 * times).zip(row.as_chunks::<3>().0) {
                    square.as_chunks_mut::<3>().0.fill(*pixel);
                }
                others.chunks_exact_mut(width * 3).for_each(|other| other.copy_from_slice(first));
            });
            Frame { width, height, rgb }
        }
    }
}

/// The part of a frame.
fn part(frame: &Frame, left: usize, top: usize, width: usize, height: usize) -> Frame {
    let row = |y: usize| &frame.rgb[((top + y) * frame.width + left) * 3..][..width * 3];
    Frame { width, height, rgb: (0..height).flat_map(row).copied().collect() }
}

/// Crops a picture to the frame's aspect at its own size, to be resized later.
/// - Source of the crop's rounding: LTX-Video `inference.py`, `load_image_to_tensor_with_resize_and_crop`, at 5260738.
pub fn cropped(frame: &Frame, width: usize, height: usize) -> Cow<'_, Frame> {
    let (w, h) = (frame.width, frame.height);
    if [w, h, width, height].contains(&0) {
        return Cow::Borrowed(frame);
    }
    // compared and divided as whole numbers: a picture of the frame's aspect is never cropped by a rounding error
    let (wider, taller) = (w * height > h * width, w * height < h * width);
    let kept = (if wider { h * width / height } else { w }, if taller { w * height / width } else { h });
    let kept = (kept.0.max(1), kept.1.max(1));
    if kept == (w, h) {
        return Cow::Borrowed(frame);
    }
    Cow::Owned(part(frame, (w - kept.0) / 2, (h - kept.1) / 2, kept.0, kept.1))
}

/// Brings a picture to the frame's size by torch's bilinear interpolation, rounded to 8 bits.
pub fn bilinear_frame(frame: &Frame, width: usize, height: usize) -> Frame {
    if (frame.width, frame.height) == (width, height) {
        return frame.clone();
    }
    let rgb = bilinear_of(&frame.rgb, (frame.width, frame.height), (width, height), f32::from);
    Frame { width, height, rgb: rgb.into_iter().map(|v| v.round_ties_even() as u8).collect() }
}

/// Brings a picture to the frame's size, resized by `lanczos`.
/// - The crop is [`cropped`].
pub fn fit(frame: &Frame, width: usize, height: usize, fit: Fit) -> Frame {
    let (w, h) = (frame.width, frame.height);
    if [w, h, width, height].contains(&0) {
        return lanczos(frame, width, height);
    }
    // Compared and divided as whole numbers: a picture of the frame's aspect is never cropped by a rounding error.
    let (wider, taller) = (w * height > h * width, w * height < h * width);
    match fit {
        Fit::Stretch => lanczos(frame, width, height),
        Fit::Crop => lanczos(&cropped(frame, width, height), width, height),
        Fit::Pad => {
            let round = |a: usize, b: usize, by: usize| ((2 * a * b + by) / (2 * by)).max(1);
            let inner = (
                if taller { round(w, height, h).min(width) } else { width },
                if wider { round(h, width, w).min(height) } else { height },
            );
            let inside = lanczos(frame, inner.0, inner.1);
            let (left, top) = ((width - inner.0) / 2, (height - inner.1) / 2);
            let mut rgb = vec![0; width * height * 3];
            for (y, row) in inside.rgb.chunks_exact(inner.0 * 3).enumerate() {
                rgb[((top + y) * width + left) * 3..][..row.len()].copy_from_slice(row);
            }
            Frame { width, height, rgb }
        }
    }
}

/// The light blur that the official code gives a still before its round trip: 3x3, Gaussian of sigma 1, mirrored at the
/// edges; the result is cut to whole numbers, not rounded.
/// - Source: LTX-Video `inference.py` (`gaussian_blur(kernel_size=3, sigma=1.0)`), `crf_compressor.py` (`.byte()`).
fn blur(frame: &Frame) -> Frame {
    let side = (-0.5f64).exp();
    let weights = [side, 1.0, side].map(|w| (w / (1.0 + 2.0 * side)) as f32);
    let (w, h) = (frame.width, frame.height);
    let mirror = |i: usize, step: usize, n: usize| match (i + step).checked_sub(1) {
        None => 1.min(n - 1),
        Some(i) if i == n => n.saturating_sub(2),
        Some(i) => i,
    };
    let mut rgb = vec![0; frame.rgb.len()];
    rgb.par_chunks_mut((w * 3).max(1)).enumerate().for_each(|(y, out)| {
        for (i, out) in out.iter_mut().enumerate() {
            let (x, c) = (i / 3, i % 3);
            let mut sum = 0.0;
            for (dy, wy) in weights.iter().enumerate() {
                for (dx, wx) in weights.iter().enumerate() {
                    let at = (mirror(y, dy, h) * w + mirror(x, dx, w)) * 3 + c;
                    sum += wy * wx * f32::from(frame.rgb[at]);
                }
            }
            *out = (sum + 1e-3) as u8; // flat areas stay as they are, whatever the weights' last bits
        }
    });
    Frame { width: w, height: h, rgb }
}

/// What some weights were trained to see in place of a clean still: a light blur, then once through H.264 as a lone key
/// frame. 0 leaves the still alone.
///
/// The official code asks x264 (`veryfast`) for a CRF; here it is openh264's constant quantiser. The damage is alike in
/// kind and amount (measured at 29: luma within 2 dB on photos and noise) and not in its bytes.
/// - The size is made even, as the official code has it: an odd last column or row is cut off. Pictures with a side above
///   2048 are compressed in tiles, which openh264 takes.
/// - Errors when openh264 cannot take the size, or in a build without it.
/// - Source: LTX-Video `inference.py` and `pipelines/crf_compressor.py`.
pub fn degrade(frame: &Frame, crf: u8) -> Result<Frame> {
    if crf == 0 {
        return Ok(frame.clone());
    }
    let (width, height) = (frame.width / 2 * 2, frame.height / 2 * 2);
    let blurred = blur(frame);
    let even =
        if (width, height) == (frame.width, frame.height) { blurred } else { part(&blurred, 0, 0, width, height) };
    ensure!(!even.rgb.is_empty(), "a still of {}x{} has nothing to compress", frame.width, frame.height);
    if even.width <= LARGEST && even.height <= LARGEST {
        return round_trip::through(&even, crf);
    }
    let mut rgb = vec![0; even.rgb.len()];
    for top in (0..even.height).step_by(LARGEST) {
        for left in (0..even.width).step_by(LARGEST) {
            let (width, height) = (LARGEST.min(even.width - left), LARGEST.min(even.height - top));
            let tile = round_trip::through(&part(&even, left, top, width, height), crf)?;
            for (y, row) in tile.rgb.chunks_exact(width * 3).enumerate() {
                rgb[((top + y) * even.width + left) * 3..][..row.len()].copy_from_slice(row);
            }
        }
    }
    Ok(Frame { rgb, ..even })
}

/// Side of the tiles that larger pictures are compressed in, a multiple of H.264's blocks: openh264 takes 36,864 of 16x16 at most.
const LARGEST: usize = 2048;

#[cfg(not(feature = "h264"))]
mod round_trip {
    use super::Frame;
    use anyhow::{Result, bail};

    pub fn through(_: &Frame, _: u8) -> Result<Frame> {
        bail!("this build has no H.264, through which the still has to go\n  fix: --image-crf 0, or a build with it")
    }
}

#[cfg(feature = "h264")]
mod round_trip;

#[cfg(test)]
mod tests;
