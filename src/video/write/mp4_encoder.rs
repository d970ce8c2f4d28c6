//! openh264 as the MP4 writer uses it: one quantiser for a whole clip, the same bytes on any number of cores.

use super::Rate;
use anyhow::{Context, Result, ensure};
use openh264::OpenH264API;
use openh264::encoder::*;

/// Quality to quantiser, straight lines between these. openh264 goes no finer than 12.
const QUANTISERS: [(f64, f64); 4] = [(1.0, 48.0), (50.0, 28.0), (80.0, 20.0), (100.0, 12.0)];

pub fn quantiser(quality: u8) -> u8 {
    let quality = f64::from(quality);
    let lines = QUANTISERS.windows(2).map(|line| (line[0], line[1]));
    let on = |((x0, y0), (x1, y1)): ((f64, f64), (f64, f64))| y0 + (y1 - y0) * (quality - x0) / (x1 - x0);
    lines.rev().find(|line| quality >= line.0.0).map_or(48.0, on).round() as u8
}

/// With both ends of its range equal the quantiser is constant; `Bufferbased` is the mode that looks at nothing else. One
/// thread and one slice: the same bytes on any number of cores. Everything that drops or blurs is off.
pub fn encoder(qp: u8, rate: Rate) -> Result<Encoder> {
    let config = EncoderConfig::new()
        .rate_control_mode(RateControlMode::Bufferbased)
        .qp(QpRange::new(qp, qp))
        .bitrate(BitRate::from_bps(4_000_000)) // asked for, then not looked at
        .max_frame_rate(FrameRate::from_hz((f64::from(rate.num) / f64::from(rate.den)) as f32))
        .skip_frames(false)
        .intra_frame_period(IntraFramePeriod::from_num_frames(rate.gop()))
        .scene_change_detect(false)
        .background_detection(false)
        .adaptive_quantization(false)
        .complexity(Complexity::High)
        .profile(Profile::Baseline)
        .level(Level::Level_5_2) // `finish` writes the one that is true
        .vui(VuiConfig::bt709())
        .num_threads(1);
    Encoder::with_api_config(OpenH264API::from_source(), config).context("cannot start openh264")
}

/// The units of a coded picture, without start codes (0 0 1 or 0 0 0 1).
pub fn units(coded: &EncodedBitStream) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for layer in (0..coded.num_layers()).filter_map(|i| coded.layer(i)) {
        for unit in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
            let zeros = unit.iter().take_while(|&&byte| byte == 0).count();
            found.push(unit.get(zeros + 1..).unwrap_or_default().to_vec());
        }
    }
    found
}

/// Parameter sets stand in the index, once; they come again with every key frame, from every encoder, and are the same.
pub fn once(set: &mut Vec<u8>, unit: Vec<u8>) -> Result<()> {
    ensure!(set.is_empty() || *set == unit, "openh264 changed its parameters within the clip");
    *set = unit;
    Ok(())
}
