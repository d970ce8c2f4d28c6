//! MP4: H.264 by openh264 (Constrained Baseline, constant quantiser), 4:2:0, BT.709 limited range, index first.
//!
//! The index is as long as the clip is, so room for it is left at the front and the samples go straight to the disk.

use super::Rate;
use super::colour::{Chroma, Planes};
use super::mp4_boxes::{self, Track};
use super::partial::Partial;
use crate::video::Frame;
use anyhow::{Context, Result, ensure};
use openh264::OpenH264API;
use openh264::encoder::*;
use openh264::formats::YUVSlices;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

pub struct Mp4 {
    partial: Partial,
    out: BufWriter<File>,
    encoder: Encoder,
    qp: u8,
    planes: Planes,
    width: u16,
    height: u16,
    rate: Rate,
    /// Frames to come, for the index's room.
    frames: usize,
    sps: Vec<u8>,
    pps: Vec<u8>,
    sizes: Vec<u32>,
    keys: Vec<u32>,
    /// Where the samples begin; known with the first of them.
    start: u64,
}

/// Quality to quantiser, straight lines between these. openh264 goes no finer than 12.
const QUANTISERS: [(f64, f64); 4] = [(1.0, 48.0), (50.0, 28.0), (80.0, 20.0), (100.0, 12.0)];

/// What comes between the index and the first sample: the rest of the room as a `free` box, and `mdat`'s own header,
/// which is longer past 4 GiB.
const MDAT: usize = 8;
const LONG_MDAT: usize = 16;
const FREE: usize = 8;

/// Twice the step.
const COARSER: u8 = 6;
const COARSEST: u8 = 51;

/// Kinds of unit.
const SPS: u8 = 7;
const PPS: u8 = 8;
const KEY: u8 = 5;

fn quantiser(quality: u8) -> u8 {
    let quality = f64::from(quality);
    let lines = QUANTISERS.windows(2).map(|line| (line[0], line[1]));
    let on = |((x0, y0), (x1, y1)): ((f64, f64), (f64, f64))| y0 + (y1 - y0) * (quality - x0) / (x1 - x0);
    lines.rev().find(|line| quality >= line.0.0).map_or(48.0, on).round() as u8
}

/// With both ends of its range equal the quantiser is constant; `Bufferbased` is the mode that looks at nothing else. One
/// thread and one slice: the same bytes on any number of cores. Everything that drops or blurs is off.
fn encoder(qp: u8, rate: Rate) -> Result<Encoder> {
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
fn units(coded: &EncodedBitStream) -> Vec<Vec<u8>> {
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
fn once(set: &mut Vec<u8>, unit: Vec<u8>) -> Result<()> {
    ensure!(set.is_empty() || *set == unit, "openh264 changed its parameters within the clip");
    *set = unit;
    Ok(())
}

impl Mp4 {
    pub fn create(
        path: &Path,
        width: usize,
        height: usize,
        rate: Rate,
        frames: usize,
        quality: u8,
        force: bool,
    ) -> Result<Mp4> {
        let ticks = frames as u64 * u64::from(rate.clock().1);
        ensure!(u32::try_from(ticks).is_ok(), "the clip is longer than an MP4 can time\n  fix: fewer --frames");
        let qp = quantiser(quality);
        let encoder = encoder(qp, rate)?;
        let partial = Partial::create(path, force)?;
        let out = partial.writer()?;
        Ok(Mp4 {
            partial,
            out,
            encoder,
            qp,
            planes: Planes::new(width, height, Chroma::Quarter),
            width: u16::try_from(width)?,
            height: u16::try_from(height)?,
            rate,
            frames,
            sps: Vec::new(),
            pps: Vec::new(),
            sizes: Vec::new(),
            keys: Vec::new(),
            start: 0,
        })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        self.planes.fill(frame);
        let (w, h) = (frame.width, frame.height);
        let picture = YUVSlices::new((&self.planes.y, &self.planes.u, &self.planes.v), (w, h), (w, w / 2, w / 2));
        let units = loop {
            match self.encoder.encode(&picture).map(|coded| units(&coded)) {
                Ok(units) => break units,
                // A picture of noise can be too big for openh264's buffer (near 8 bits a pixel), and it then stops for
                // good. Another begins with a key frame, coarser.
                Err(_) if self.qp + COARSER <= COARSEST => {
                    self.qp += COARSER;
                    self.encoder = encoder(self.qp, self.rate)?;
                }
                Err(error) => return Err(error).context("openh264 cannot encode a frame"),
            }
        };
        let mut sample = Vec::new();
        for unit in units {
            match unit.first().map(|byte| byte & 31) {
                Some(SPS) => once(&mut self.sps, unit)?,
                Some(PPS) => once(&mut self.pps, unit)?,
                None => {}
                Some(kind) => {
                    if kind == KEY {
                        self.keys.push(self.sizes.len() as u32 + 1);
                    }
                    sample.extend_from_slice(&u32::try_from(unit.len())?.to_be_bytes());
                    sample.extend_from_slice(&unit);
                }
            }
        }
        self.keys.dedup(); // a picture may come in several units
        ensure!(!sample.is_empty(), "openh264 left out frame {}", self.sizes.len());
        if self.sizes.is_empty() {
            self.start = self.room()?;
            self.out.seek(SeekFrom::Start(self.start)).with_context(|| self.partial.failed())?;
        }
        self.out.write_all(&sample).with_context(|| self.partial.failed())?;
        self.sizes.push(u32::try_from(sample.len())?);
        Ok(())
    }

    /// Bytes before the first sample, as if every frame were a key frame and every place past 4 GiB.
    fn room(&self) -> Result<u64> {
        ensure!(self.sps.len() >= 4 && !self.pps.is_empty(), "openh264 gave no parameter sets");
        let keys: Vec<u32> = (1..=self.frames as u32).collect();
        let sizes = vec![0; self.frames];
        let worst = Track { keys: &keys, ..self.track(&sizes, 1 << 32) };
        Ok((mp4_boxes::header(&worst).len() + FREE + LONG_MDAT) as u64)
    }

    fn track<'a>(&'a self, sizes: &'a [u32], start: u64) -> Track<'a> {
        Track {
            width: self.width,
            height: self.height,
            clock: self.rate.clock(),
            sps: &self.sps,
            pps: &self.pps,
            sizes,
            keys: &self.keys,
            chunk: self.rate.gop() as usize,
            start,
        }
    }

    pub fn finish(mut self: Box<Self>) -> Result<()> {
        let fps = self.rate.num.div_ceil(self.rate.den) as usize;
        self.sps[3] = mp4_boxes::level(self.width.into(), self.height.into(), fps, &self.sizes);
        let mut head = mp4_boxes::header(&self.track(&self.sizes, self.start));
        let data: u64 = self.sizes.iter().map(|&size| u64::from(size)).sum();
        let long = data + MDAT as u64 > u64::from(u32::MAX);
        let free = self.start as usize - head.len() - if long { LONG_MDAT } else { MDAT };
        head.extend_from_slice(&(free as u32).to_be_bytes());
        head.extend_from_slice(b"free");
        head.resize(head.len() + free - FREE, 0);
        let length = if long { 1 } else { (data + MDAT as u64) as u32 };
        head.extend_from_slice(&length.to_be_bytes());
        head.extend_from_slice(b"mdat");
        if long {
            head.extend_from_slice(&(data + LONG_MDAT as u64).to_be_bytes());
        }
        let write = |out: &mut BufWriter<File>| {
            out.rewind()?;
            out.write_all(&head)?;
            out.flush()
        };
        write(&mut self.out).with_context(|| self.partial.failed())?;
        self.partial.commit()
    }
}

#[cfg(test)]
#[path = "mp4_tests.rs"]
mod tests;
