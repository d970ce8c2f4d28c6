//! A picture once through openh264 and back: BT.601 limited 4:2:0, as the official code's library converts.

use crate::video::Frame;
use crate::video::read::yuv::{Colour, Planes};
use anyhow::{Context, Result};
use openh264::OpenH264API;
use openh264::decoder::{Decoder, DecoderConfig, Flush};
use openh264::encoder::*;
use openh264::formats::{YUVSlices, YUVSource};

/// openh264 takes quantisers from 12 to 51, and no side below 16.
const FINEST: u8 = 12;
const COARSEST: u8 = 51;
const SMALLEST: usize = 16;

const BT601: u8 = 6;

/// - The frame's sides are even.
pub fn through(frame: &Frame, crf: u8) -> Result<Frame> {
    let planes = planes(frame);
    let (w, h) = (planes.width, planes.height);
    let qp = crf.clamp(FINEST, COARSEST);
    let config = EncoderConfig::new()
        .rate_control_mode(RateControlMode::Bufferbased) // the mode that looks at the quantiser alone
        .qp(QpRange::new(qp, qp))
        .skip_frames(false)
        .scene_change_detect(false)
        .background_detection(false)
        .adaptive_quantization(false)
        .profile(Profile::Baseline)
        .level(Level::Level_5_2)
        .num_threads(1);
    let failed = || format!("openh264 cannot take a still of {}x{}\n  fix: --image-crf 0", frame.width, frame.height);
    let mut encoder = Encoder::with_api_config(OpenH264API::from_source(), config).with_context(failed)?;
    let slices = YUVSlices::new((&planes.y, &planes.u, &planes.v), (w, h), (w, w / 2, w / 2));
    let coded = encoder.encode(&slices).with_context(failed)?.to_vec();

    let config = DecoderConfig::new().flush_after_decode(Flush::Flush);
    let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), config).with_context(failed)?;
    let picture = decoder.decode(&coded).with_context(failed)?.with_context(failed)?;
    let (sy, su, sv) = picture.strides();
    let cut = |plane: &[u8], stride: usize, width: usize, height: usize| -> Vec<u8> {
        plane.chunks(stride).take(height).flat_map(|row| row.iter().take(width).copied()).collect()
    };
    let (width, height) = (frame.width, frame.height);
    let back = Planes {
        width,
        height,
        y: cut(picture.y(), sy, width, height),
        u: cut(picture.u(), su, width / 2, height / 2),
        v: cut(picture.v(), sv, width / 2, height / 2),
        halved: (true, true),
    };
    Ok(back.rgb(&Colour::new(BT601, false, width, height)))
}

/// Colour is the mean of each block of 2x2, as the way back repeats it. A picture smaller than the encoder takes is
/// continued with its edge.
fn planes(frame: &Frame) -> Planes {
    let (w, h) = (frame.width.max(SMALLEST), frame.height.max(SMALLEST));
    let pixel = |x: usize, y: usize| {
        let at = (y.min(frame.height - 1) * frame.width + x.min(frame.width - 1)) * 3;
        [0, 1, 2].map(|c| f32::from(frame.rgb[at + c]))
    };
    let luma = |[r, g, b]: [f32; 3]| 0.299 * r + 0.587 * g + 0.114 * b;
    let places = |across: usize, down: usize| (0..down).flat_map(move |y| (0..across).map(move |x| (x, y)));
    let y = places(w, h).map(|(x, y)| (16.5 + luma(pixel(x, y)) * 219.0 / 255.0) as u8).collect();
    let means: Vec<[f32; 3]> = places(w / 2, h / 2)
        .map(|(x, y)| {
            let block = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(dx, dy)| pixel(2 * x + dx, 2 * y + dy));
            [0, 1, 2].map(|c| block.iter().map(|pixel| pixel[c] / 4.0).sum())
        })
        .collect();
    let colour = |c: usize, range: f32| -> Vec<u8> {
        means.iter().map(|&mean| (128.5 + (mean[c] - luma(mean)) / range * 224.0 / 255.0) as u8).collect()
    };
    Planes { width: w, height: h, y, u: colour(2, 1.772), v: colour(0, 1.402), halved: (true, true) }
}
