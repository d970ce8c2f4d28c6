//! H.264 by openh264, from an MP4's samples to frames in the order of showing.
//!
//! openh264 would guess that order by itself. It is made to give each picture as soon as it is decoded
//! (`sps::in_decoding_order`), and the container's times put them in order; at most a handful wait.

use super::Source;
use super::mp4::Track;
use super::shape::Shape;
use super::sps::{self, Sps};
use super::yuv::{Colour, Planes};
use crate::video::Frame;
use anyhow::{Context, Result, bail, ensure};
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

pub struct H264 {
    file: File,
    track: Track,
    /// For each sample its place in the order of showing; `HIDDEN` for those that the edit list leaves out.
    places: Vec<usize>,
    decoder: Decoder,
    /// The next sample to decode, the next frame to show.
    next: usize,
    due: usize,
    /// Decoded and not yet due.
    held: BTreeMap<usize, (Planes, Colour)>,
    /// The description whose parameter sets the decoder has.
    entry: Option<usize>,
    /// Of the latest parameter set.
    colour: Colour,
    size: (usize, usize),
    /// What the parameter sets say so far.
    hdr: bool,
    shape: Option<Shape>,
    packet: Vec<u8>,
}

const HIDDEN: usize = usize::MAX;

/// H.264 keeps at most 16 pictures back, and fewer large ones; a file that asks for more is broken, and would fill the memory.
const MOST_HELD: usize = 40;
const MOST_HELD_BYTES: usize = 300 << 20;

/// Bytes of a coded picture: more than the largest take raw.
const LARGEST_SAMPLE: u32 = 64 << 20;

const SPS: u8 = 7;
const IDR: u8 = 5;

/// Why a stream is not for this decoder.
fn unsupported(sps: &Sps) -> Option<&'static str> {
    match sps {
        Sps { progressive: false, .. } => Some("interlaced"),
        Sps { bits, .. } if *bits > 8 => Some("more than 8 bits"),
        Sps { chroma_format: 0, .. } => Some("without colour"),
        Sps { chroma_format: 2.., .. } => Some("with more colour than 4:2:0"),
        Sps { matrix: Some(0 | 8 | 10..), .. } => Some("of a colour space that is not Y'CbCr"),
        _ => None,
    }
}

fn decoder() -> Result<Decoder> {
    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    Decoder::with_api_config(OpenH264API::from_source(), config).context("cannot start openh264")
}

impl H264 {
    /// Takes over a track and decodes its first frame.
    /// - Errors when the stream is one that openh264 cannot decode.
    pub fn open(file: File, track: Track) -> Result<H264> {
        let mut places = vec![HIDDEN; track.samples.len()];
        track.shown.iter().enumerate().for_each(|(place, &(sample, _))| places[sample] = place);
        let mut h264 = H264 {
            file,
            track,
            places,
            decoder: decoder()?,
            next: 0,
            due: 0,
            held: BTreeMap::new(),
            entry: None,
            colour: Colour::new(1, false, 0, 0),
            size: (0, 0),
            hdr: false,
            shape: None,
            packet: Vec::new(),
        };
        h264.seek(0)?;
        h264.decode_until_due()?;
        h264.size = h264.held.get(&0).map(|(planes, _)| (planes.width, planes.height)).unwrap_or_default();
        Ok(h264)
    }

    /// Before the track's turn.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Brighter than 8 bits can show.
    pub fn hdr(&self) -> bool {
        self.hdr
    }

    /// The shape of pixels that are not square, as the stream says.
    pub fn shape(&self) -> Option<Shape> {
        self.shape
    }

    /// Starts again at the last sample before frame `due` that needs none before it.
    fn seek(&mut self, due: usize) -> Result<()> {
        let Some(&(target, _)) = self.track.shown.get(due) else { return Ok(()) };
        let time = self.track.samples[target].shown;
        let mut start = 0;
        for i in (1..=target).rev() {
            let sample = self.track.samples[i];
            if sample.sync && sample.shown <= time && self.load(i)? {
                start = i;
                break;
            }
        }
        if self.entry.is_none() || start > self.next || due < self.due {
            self.decoder = decoder()?;
            (self.next, self.entry) = (start, None);
        }
        self.held = self.held.split_off(&due);
        self.due = due;
        Ok(())
    }

    /// Reads sample `i` into `packet`, lengths turned into start codes, behind the parameter sets where they are new.
    /// - Returns whether decoding can start with it: files also mark pictures after which older ones are still used.
    fn load(&mut self, i: usize) -> Result<bool> {
        let sample = self.track.samples[i];
        let entry = self.track.entries.get(sample.entry).context("a sample without description")?;
        let avc = entry.avc.as_ref().context("the H.264 parameters (`avcC`) are missing")?;
        ensure!(sample.size <= LARGEST_SAMPLE, "a frame of {} bytes is larger than any picture", sample.size);
        let mut bytes = vec![0; sample.size as usize];
        self.file.seek(SeekFrom::Start(sample.offset))?;
        self.file.read_exact(&mut bytes)?;

        self.packet.clear();
        let mut put = |unit: &[u8]| -> Result<()> {
            self.packet.extend_from_slice(&[0, 0, 0, 1]);
            if unit.first().is_some_and(|byte| byte & 31 == SPS) {
                let sps = sps::parse(unit)?;
                if let Some(why) = unsupported(&sps) {
                    bail!("{why}");
                }
                let untagged = super::yuv::untagged(sps.width, sps.height);
                let matrix = sps.matrix.or(entry.matrix).unwrap_or(untagged);
                let full = sps.full.or(entry.full).unwrap_or(false);
                self.colour = Colour::new(matrix, full, sps.width, sps.height);
                self.hdr |=
                    sps.description.map(|[_, transfer, _]| transfer).or(entry.transfer).is_some_and(super::yuv::is_hdr);
                self.shape = self.shape.or(sps.shape);
                self.packet.extend(sps::in_decoding_order(unit)?);
            } else {
                self.packet.extend_from_slice(unit);
            }
            Ok(())
        };
        if self.entry != Some(sample.entry) {
            for set in &avc.sets {
                put(set)?;
            }
        }
        let mut rest = bytes.as_slice();
        let mut fresh = false;
        while let Some((head, tail)) = rest.split_at_checked(avc.length) {
            let size = head.iter().fold(0, |size, &byte| size << 8 | usize::from(byte));
            let unit = tail.get(..size).context("a unit is longer than its sample")?;
            if let Some(kind) = unit.first() {
                fresh |= kind & 31 == IDR;
                put(unit)?;
            }
            rest = &tail[size..];
        }
        Ok(fresh)
    }

    fn decode_until_due(&mut self) -> Result<()> {
        while !self.held.contains_key(&self.due) {
            ensure!(self.next < self.track.samples.len(), "frame {} is missing in the stream", self.due);
            let (width, height) = self.size;
            let bytes = self.held.len() * width * height * 3 / 2;
            ensure!(self.held.len() < MOST_HELD && bytes < MOST_HELD_BYTES, "the frames' order is impossible");
            let place = self.places[self.next];
            self.load(self.next)?;
            self.entry = Some(self.track.samples[self.next].entry);
            self.next += 1;
            let picture = self.decoder.decode(&self.packet);
            let name = || match place {
                HIDDEN => "a frame before the first".to_string(),
                place => format!("frame {place}"),
            };
            // openh264's own words are numbers.
            let Ok(Some(picture)) = picture else {
                bail!("openh264 cannot decode {}: it is damaged, or of a kind that is not known here", name())
            };
            if place != HIDDEN && place >= self.due {
                let planes = copy(&picture)?;
                let size = (planes.width, planes.height);
                let (w, h) = self.size;
                ensure!(
                    (w, h) == (0, 0) || (w, h) == size,
                    "its size changes at {}, from {w}x{h} to {}x{}\n  fix: {}",
                    name(),
                    size.0,
                    size.1,
                    super::shape::one_size(w, h)
                );
                self.held.insert(place, (planes, self.colour));
            }
        }
        Ok(())
    }
}

/// Out of the decoder's memory, which it uses again.
fn copy(picture: &DecodedYUV) -> Result<Planes> {
    let (width, height) = picture.dimensions();
    let (across, down) = (width.div_ceil(2), height.div_ceil(2));
    let plane = |plane: &[u8], stride: usize, width: usize, height: usize| -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(width * height);
        for row in 0..height {
            out.extend_from_slice(plane.get(row * stride..row * stride + width).context("openh264's picture is cut")?);
        }
        Ok(out)
    };
    let (y, u, v) = picture.strides();
    Ok(Planes {
        width,
        height,
        y: plane(picture.y(), y, width, height)?,
        u: plane(picture.u(), u, across, down)?,
        v: plane(picture.v(), v, across, down)?,
        halved: (true, true),
    })
}

impl Source for H264 {
    fn next(&mut self) -> Result<Option<Frame>> {
        if self.due >= self.track.shown.len() {
            return Ok(None);
        }
        self.decode_until_due()?;
        let Some((planes, colour)) = self.held.remove(&self.due) else { bail!("frame {} is missing", self.due) };
        self.due += 1;
        Ok(Some(super::turned(planes.rgb(&colour), self.track.orientation)))
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        self.seek(frame)
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::testing::*;
    use super::super::{mp4, open};
    use super::*;

    /// The one that the crate's own writer makes.
    pub fn parameter_set(width: usize, height: usize) -> Result<Vec<u8>> {
        let folder = Scratch::new(&format!("sps-{width}"));
        let path = clip(&folder, width, height, 1)?;
        let track = mp4::read(&path, &mut File::open(&path)?)?;
        let avc = track.entries[0].avc.clone().context("avcC")?;
        Ok(avc.sets[0].clone())
    }

    fn clip(folder: &Scratch, width: usize, height: usize, frames: usize) -> Result<std::path::PathBuf> {
        let path = folder.path("a.mp4");
        write_clip(&path, width, height, frames, 23.976)?;
        Ok(path)
    }

    #[test]
    fn a_written_clip_comes_back() -> Result<()> {
        let folder = Scratch::new("mp4");
        let mut reader = open(&clip(&folder, 82, 50, 60)?)?;
        let info = reader.info.clone();
        assert_eq!((info.width, info.height, info.frames, info.codec.as_str()), (82, 50, 60, "H.264"));
        assert!((info.fps.context("fps")? - 24000.0 / 1001.0).abs() < 1e-9 && !info.sound && !info.still, "{info:?}");
        for t in 0..60 {
            let timed = reader.next()?.context("a frame")?;
            assert!((timed.start - t as f64 * 1001.0 / 24000.0).abs() < 1e-9);
            assert!(worst_patch(&timed.frame, t) <= 4, "frame {t}: {}", worst_patch(&timed.frame, t));
        }
        assert!(reader.next()?.is_none());
        for t in [57, 3, 50, 51, 0] {
            reader.skip_to(t)?;
            let frame = reader.next()?.context("a frame")?.frame;
            assert!(worst_patch(&frame, t) <= 4, "frame {t}");
        }
        Ok(())
    }

    /// Wherever a byte of a sample is another one, there is an error, a remark, or the same pictures.
    #[test]
    fn damage_is_never_passed_over() -> Result<()> {
        let folder = Scratch::new("damaged");
        let path = clip(&folder, 48, 32, 6)?;
        let frames = |path: &std::path::Path| -> Result<(Vec<Frame>, Vec<String>)> {
            let mut reader = open(path)?;
            let mut frames = Vec::new();
            while let Some(timed) = reader.next()? {
                frames.push(timed.frame);
            }
            Ok((frames, reader.notes))
        };
        let (whole, notes) = frames(&path)?;
        assert!(notes.is_empty(), "{notes:?}");
        let bytes = std::fs::read(&path)?;
        let samples = mp4::read(&path, &mut File::open(&path)?)?.samples;
        let damaged = folder.path("b.mp4");
        let mut told = 0;
        for sample in samples {
            for at in (sample.offset..sample.offset + u64::from(sample.size)).step_by(3) {
                let mut bytes = bytes.clone();
                bytes[at as usize] ^= 1 << (at % 8);
                std::fs::write(&damaged, bytes)?;
                if let Ok((frames, notes)) = frames(&damaged) {
                    let said = notes.iter().any(|note| note.contains("damaged"));
                    assert!(said || frames == whole, "byte {at} is passed over");
                    told += usize::from(said);
                }
            }
        }
        assert!(told > 0, "nothing that is damaged decodes");
        Ok(())
    }

    #[test]
    fn a_cut_file_names_the_frame() -> Result<()> {
        let folder = Scratch::new("cut");
        let path = clip(&folder, 64, 48, 20)?;
        let bytes = std::fs::read(&path)?;
        std::fs::write(&path, &bytes[..bytes.len() - 100])?;
        let error = open(&path).err().context("an error")?.to_string();
        assert!(error.contains("it ends in frame ") && error.contains("of 20"), "{error}");
        let moov = bytes.windows(4).position(|name| name == b"moov").context("moov")?;
        std::fs::write(&path, &bytes[..moov + 40])?;
        let error = open(&path).err().context("an error")?.to_string();
        assert!(error.contains("moov") && error.contains("fix:"), "{error}");
        Ok(())
    }

    #[test]
    fn a_turned_clip_stands_upright() -> Result<()> {
        let folder = Scratch::new("turn");
        let path = clip(&folder, 64, 48, 12)?;
        let bytes = std::fs::read(&path)?;
        let mut turned = bytes.clone();
        let tkhd = turned.windows(4).position(|name| name == b"tkhd").context("tkhd")? + 4;
        let matrix: Vec<u8> =
            [0, 0x10000u32, 0, (-0x10000i32) as u32, 0].iter().flat_map(|v| v.to_be_bytes()).collect();
        turned[tkhd + 40..][..20].copy_from_slice(&matrix);
        std::fs::write(&path, &turned)?;
        let mut reader = open(&path)?;
        assert_eq!((reader.info.width, reader.info.height), (48, 64));
        let frame = reader.next()?.context("a frame")?.frame;
        assert_eq!((frame.width, frame.height), (48, 64));
        let top = &frame.rgb[(4 * 48 + 24) * 3..][..3]; // the left patch is on top when turned clockwise
        assert!(top[0] > 240 && top[1] < 15 && top[2] < 15, "{top:?}");
        Ok(())
    }
}
