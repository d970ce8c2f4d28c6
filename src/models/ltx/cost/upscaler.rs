//! The upscaler between two passes, walked through over shapes.

use crate::models::cost::{Count, Widths};
use crate::models::ltx::cost::count::{Conv, Frames, Picture, Walk};
use crate::models::ltx::upscaler::UpscalerConfig;
use crate::nn::path::RowPath;

/// Copies of the large latents that normalising them, and bringing them to the small ones' statistics, makes at the most.
const LATENTS: u64 = 6;

/// The upscaler over a clip of latents: frames, height, width.
/// - `widths`: of f32, in which it runs.
pub fn upscaler(config: &UpscalerConfig, [frames, h, w]: [usize; 3], widths: Widths) -> Count {
    let mut walk = Walk::new(widths);
    let [time, space, _] = config.factors();
    let latent = Picture { h: h as u64, w: w as u64, c: config.channels as u64 };
    let (small, frames) = (latent.with(config.width), frames as u64);
    let (large, many) =
        (Picture { h: space as u64 * small.h, w: space as u64 * small.w, ..small }, time as u64 * frames);
    // clips of one frame each where it does not look at neighbours
    let across = |many: u64, time: bool| match (config.across_time, time) {
        (true, true) => Conv::PLAIN,
        (true, false) => Conv { kernel: [1, 3, 3], ..Conv::PLAIN },
        (false, _) => Conv { kernel: [1, 3, 3], batch: many, ..Conv::PLAIN },
    };
    let x = walk.make(latent, frames);
    let mut y = convolve(&mut walk, across(frames, true), frames, latent, small);
    let normed = norm(&mut walk, y, small);
    let z = walk.make(small, frames);
    [y, normed].into_iter().for_each(|frames| walk.drop(frames));
    y = blocks(&mut walk, config, across(frames, true), z, small);
    let spread = small.with(config.width * time * space * space);
    let wide = convolve(&mut walk, across(frames, config.enlarges_time), frames, small, spread);
    let mut z = walk.make(large, many);
    [y, wide].into_iter().for_each(|frames| walk.drop(frames));
    if config.enlarges_time {
        // without the first
        let rest = walk.make(large, many - 1);
        walk.drop(z);
        z = rest;
    }
    let many = z.count;
    y = blocks(&mut walk, config, across(many, true), z, large);
    let out = convolve(&mut walk, across(many, true), many, large, large.with(config.channels));
    [x, y, out].into_iter().for_each(|frames| walk.drop(frames));
    let latents = walk.make(large.with(config.channels), LATENTS * many);
    walk.drop(latents);
    walk.count
}

/// `Conv::forward`, of `frames` frames in all.
fn convolve(walk: &mut Walk, conv: Conv, frames: u64, input: Picture, output: Picture) -> Frames {
    let around = conv.kernel[0] as u64 - 1;
    let nothing = walk.make(input, if around > 0 { conv.batch } else { 0 });
    let frames = frames / conv.batch;
    let y = walk.conv(conv, frames + around, input, output, frames);
    walk.drop(nothing);
    y
}

/// `GroupNorm::forward`.
fn norm(walk: &mut Walk, x: Frames, picture: Picture) -> Frames {
    let y = walk.make(picture, x.count);
    if walk.rows(picture, x.count) != RowPath::Kernel {
        // less its mean; divided, and multiplied
        let others = [0; 3].map(|_| walk.make(picture, x.count));
        others.into_iter().for_each(|frames| walk.drop(frames));
    }
    y
}

/// Residual blocks in a row.
fn blocks(walk: &mut Walk, config: &UpscalerConfig, conv: Conv, mut x: Frames, picture: Picture) -> Frames {
    let frames = x.count;
    for _ in 0..config.blocks {
        let y = convolve(walk, conv, frames, picture, picture);
        let normed = norm(walk, y, picture);
        let h = walk.make(picture, frames);
        [y, normed].into_iter().for_each(|frames| walk.drop(frames));
        let y = convolve(walk, conv, frames, picture, picture);
        let normed = norm(walk, y, picture);
        let sum = walk.make(picture, frames);
        walk.drop(normed);
        let z = walk.make(picture, frames);
        [y, sum, h, x].into_iter().for_each(|frames| walk.drop(frames));
        x = z;
    }
    x
}
