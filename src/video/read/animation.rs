//! GIF, animated WebP and animated PNG: frames as a viewer shows them, laid over each other by their own rules.
//!
//! Such a file holds layers: rectangles of the canvas, how each is laid, and what becomes of it afterwards. An index of them
//! is read first, without decoding. Each layer is then made a still file in memory, which the decoders of stills read. Where
//! nothing is drawn there is white, as in browsers and in `ffmpeg`.

use super::{Clip, Remarks, Source, still};
use crate::video::Frame;
use anyhow::{Context, Result, anyhow, ensure};
use image::{ImageFormat, RgbaImage};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

mod apng;
mod gif;
#[cfg(test)]
mod tests;
mod webp;

/// What a file holds, undecoded.
#[derive(Debug, Default)]
struct Index {
    width: usize,
    height: usize,
    layers: Vec<Layer>,
    /// What all layers share: a GIF's first 13 bytes and palette, a PNG's header, palette and transparency as chunks.
    head: Vec<u8>,
}

/// A rectangle of the canvas.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    /// How long it stands.
    seconds: f64,
    /// Its pixels replace those beneath, transparent ones too; else they are laid over them.
    replaces: bool,
    after: After,
    /// The palette's colour that is none (GIF).
    transparent: Option<u8>,
    /// Where its picture is in the file.
    bytes: Range<u64>,
}

/// What becomes of a layer before the next one is laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Stays,
    /// Its rectangle is emptied.
    Cleared,
    /// Its rectangle is again what it was before.
    Undone,
}

/// Pixels of a canvas: 8K. About 20 bytes for each are in use while a layer is laid.
const MOST_CANVAS: usize = 1 << 25;
/// Pixels of all frames together: 2,000 frames of 1920x1080, most of a minute of work. A file of a few bytes can ask for any.
const MOST_WORK: u64 = 1 << 32;
/// Pixels of all frames that are decoded once when the file is opened, to find what is damaged: less than a second of work.
const CHECKED_WORK: u64 = 1 << 26;
/// What a frame costs besides its pixels, in pixels: reading it and setting its decoder up.
const FRAME_WORK: u64 = 256;
/// Frames, of any size: a day at 12 a second.
const MOST_LAYERS: usize = 1 << 20;
/// Bytes of one layer: more than its pixels take uncompressed.
const MOST_BYTES: u64 = 256 << 20;

impl Index {
    /// - None for a still (WebP, PNG).
    fn read(path: &Path, format: ImageFormat) -> Result<Option<Index>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut input = Input { at: 0, length, file: BufReader::new(file) };
        let index = match format {
            ImageFormat::Gif => Some(gif::index(&mut input)?),
            ImageFormat::WebP => webp::index(&mut input)?,
            ImageFormat::Png => apng::index(&mut input)?,
            _ => None,
        };
        if let Some(index) = &index {
            index.check()?;
        }
        Ok(index)
    }

    /// Bounds the work and memory that it asks for.
    fn check(&self) -> Result<()> {
        let (width, height, frames) = (self.width, self.height, self.layers.len());
        super::check_size(width, height)?;
        ensure!(frames > 0, "there are no frames in it");
        let fix = "make it smaller or shorter, or an MP4: `ffmpeg -i IN -c:v libx264 -crf 10 -pix_fmt yuv420p OUT.mp4`";
        ensure!(
            width * height <= MOST_CANVAS,
            "it claims {width}x{height} pixels, too many for an animation\n  fix: {fix}"
        );
        ensure!(
            self.work() <= MOST_WORK,
            "it claims {frames} frames of {width}x{height} pixels, too many for an animation\n  fix: {fix}"
        );
        let large = self.layers.iter().position(|layer| layer.bytes.end - layer.bytes.start > MOST_BYTES);
        ensure!(large.is_none(), "its frame {} is larger than any picture", large.unwrap_or(0));
        Ok(())
    }

    /// What decoding all frames costs, in pixels.
    fn work(&self) -> u64 {
        let canvas = self.width * self.height;
        // a layer may be larger than what is seen of it
        self.layers.iter().map(|layer| (layer.width * layer.height).max(canvas) as u64 + FRAME_WORK).sum()
    }

    /// Whether nothing of what was laid before shows through.
    fn starts_anew(&self, layer: &Layer) -> bool {
        let whole = (layer.x, layer.y) == (0, 0) && (layer.width, layer.height) == (self.width, self.height);
        whole && layer.replaces && layer.after != After::Undone
    }
}

/// A file that is read from the front, byte by byte where it has to be.
struct Input {
    file: BufReader<File>,
    at: u64,
    length: u64,
}

impl Input {
    /// - Errors when the file ends before.
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|_| anyhow!("it is cut short"))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn take_all(&mut self, n: usize) -> Result<Vec<u8>> {
        ensure!(n as u64 <= self.length.saturating_sub(self.at), "it is cut short");
        let mut bytes = vec![0; n];
        self.file.read_exact(&mut bytes)?;
        self.at += n as u64;
        Ok(bytes)
    }

    /// - Errors when the file ends before.
    fn go_to(&mut self, at: u64) -> Result<()> {
        ensure!(at <= self.length, "it is cut short");
        self.file.seek_relative(at as i64 - self.at as i64)?;
        self.at = at;
        Ok(())
    }

    fn ended(&self) -> bool {
        self.at >= self.length
    }
}

/// What has been laid so far, four bytes a pixel.
struct Canvas {
    width: usize,
    rgba: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Canvas {
        Canvas { width, rgba: vec![0; width * height * 4] }
    }

    /// The part of the canvas that a layer covers, row by row.
    fn rows(&mut self, layer: &Layer) -> impl Iterator<Item = &mut [u8]> {
        let (left, right) = (layer.x.min(self.width), (layer.x + layer.width).min(self.width));
        let rows = self.rgba.chunks_exact_mut(self.width * 4).skip(layer.y).take(layer.height);
        rows.map(move |row| &mut row[left * 4..right * 4])
    }

    fn copy(&mut self, layer: &Layer) -> Vec<u8> {
        self.rows(layer).flat_map(|row| row.iter().copied()).collect()
    }

    fn lay(&mut self, layer: &Layer, picture: &RgbaImage) {
        let source = picture.as_raw().chunks_exact(layer.width * 4);
        for (row, source) in self.rows(layer).zip(source) {
            if layer.replaces {
                row.copy_from_slice(&source[..row.len()]);
                continue;
            }
            for (below, above) in row.as_chunks_mut::<4>().0.iter_mut().zip(source.as_chunks::<4>().0) {
                *below = over(*above, *below);
            }
        }
    }

    fn frame(&self, height: usize) -> Frame {
        let mut rgb = Vec::with_capacity(self.width * height * 3);
        for pixel in self.rgba.as_chunks::<4>().0 {
            let [r, g, b, _] = if pixel[3] == 255 { *pixel } else { over(*pixel, [255; 4]) };
            rgb.extend_from_slice(&[r, g, b]);
        }
        Frame { width: self.width, height, rgb }
    }
}

/// One pixel over another; alpha is not multiplied in.
/// - Source: PNG (Third Edition), 13.16; WebP Container, "alpha-blending".
fn over(above: [u8; 4], below: [u8; 4]) -> [u8; 4] {
    let (a, b) = (u32::from(above[3]), u32::from(below[3]));
    if a == 255 || b == 0 {
        return above;
    }
    if a == 0 {
        return below;
    }
    let (a, b) = (a * 255, b * (255 - a)); // shares, of 255 * 255
    let mix = |i: usize| ((u32::from(above[i]) * a + u32::from(below[i]) * b + (a + b) / 2) / (a + b)) as u8;
    [mix(0), mix(1), mix(2), ((a + b + 127) / 255) as u8]
}

/// Forward only, but for layers that show nothing of those before them.
pub struct Animation {
    file: File,
    format: ImageFormat,
    index: Index,
    canvas: Canvas,
    /// The next layer.
    at: usize,
    /// What the last layer's rectangle held before, where it is to be that again.
    before: Option<Vec<u8>>,
}

impl Animation {
    fn new(path: &Path, format: ImageFormat, index: Index) -> Result<Animation> {
        let canvas = Canvas::new(index.width, index.height);
        Ok(Animation { file: File::open(path)?, format, index, canvas, at: 0, before: None })
    }

    fn picture(&mut self, layer: &Layer) -> Result<RgbaImage> {
        self.file.seek(SeekFrom::Start(layer.bytes.start))?;
        let mut bytes = vec![0; (layer.bytes.end - layer.bytes.start) as usize];
        self.file.read_exact(&mut bytes).context("the file is shorter than it was")?;
        let file = match self.format {
            ImageFormat::Gif => gif::still(&self.index.head, layer, &bytes),
            ImageFormat::WebP => webp::still(layer, &bytes),
            _ => apng::still(&self.index.head, layer, &bytes)?,
        };
        drop(bytes);
        let picture = still::decode(file, self.format)?.into_rgba8();
        let size = (picture.width() as usize, picture.height() as usize);
        ensure!(size == (layer.width, layer.height), "its size is not the one that the file announces");
        Ok(picture)
    }

    /// Lays the next layer.
    fn advance(&mut self) -> Result<()> {
        let layer = self.index.layers[self.at].clone();
        let picture = self.picture(&layer).with_context(|| format!("frame {} is damaged or cut short", self.at))?;
        if let Some(last) = self.at.checked_sub(1).map(|at| &self.index.layers[at]) {
            match (last.after, self.before.take()) {
                (After::Undone, Some(before)) => {
                    let mut rest = before.as_slice();
                    self.canvas.rows(last).for_each(|row| {
                        let (head, tail) = rest.split_at(row.len());
                        row.copy_from_slice(head);
                        rest = tail;
                    });
                }
                (After::Cleared, _) => self.canvas.rows(last).for_each(|row| row.fill(0)),
                _ => {}
            }
        }
        self.before = (layer.after == After::Undone).then(|| self.canvas.copy(&layer));
        self.canvas.lay(&layer, &picture);
        self.at += 1;
        Ok(())
    }

    fn is_transparent(&self) -> bool {
        self.canvas.rgba.as_chunks::<4>().0.iter().any(|pixel| pixel[3] < 255)
    }
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Gif => "GIF",
        ImageFormat::WebP => "WebP",
        _ => "APNG",
    }
}

/// Width and height, from the index alone.
/// - None for a still, which a GIF never is here.
pub fn size(path: &Path, format: ImageFormat) -> Result<Option<(usize, usize)>> {
    Ok(Index::read(path, format)?.map(|index| (index.width, index.height)))
}

/// Checks the index, and decodes the frames once to find what is damaged: all of them where they are not many and large,
/// else the first.
/// - None for a still, which a GIF never is here.
pub fn open(path: &Path, format: ImageFormat, remarks: &mut Remarks) -> Result<Option<Clip>> {
    let Some(index) = Index::read(path, format)? else { return Ok(None) };
    let (width, height, count) = (index.width, index.height, index.layers.len());
    let mut end = 0.0;
    let mut starts = Vec::with_capacity(count);
    for layer in &index.layers {
        starts.push(end);
        end += layer.seconds;
    }
    let checked = if index.work() <= CHECKED_WORK { count } else { 1 };
    let mut animation = Animation::new(path, format, index)?;
    for _ in 0..checked {
        animation.advance()?;
        remarks.on_white |= !remarks.on_white && animation.is_transparent();
    }
    animation.at = 0;
    animation.canvas.rgba.fill(0);
    animation.before = None;
    let tick = if format == ImageFormat::Gif { 0.01 } else { 0.001 };
    Ok(Some(Clip {
        source: Box::new(animation),
        width,
        height,
        still: count == 1,
        starts,
        end: Some(end),
        tick,
        codec: name(format).to_string(),
        sound: false,
        path: PathBuf::from(path),
    }))
}

impl Source for Animation {
    fn next(&mut self) -> Result<Option<Frame>> {
        if self.at == self.index.layers.len() {
            return Ok(None);
        }
        self.advance()?;
        Ok(Some(self.canvas.frame(self.index.height)))
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        let frame = frame.min(self.index.layers.len());
        let anew = |&at: &usize| self.index.layers.get(at).is_some_and(|layer| self.index.starts_anew(layer));
        if let Some(at) = (self.at..=frame).rev().find(anew) {
            (self.at, self.before) = (at, None);
        }
        while self.at < frame {
            self.advance()?;
        }
        Ok(())
    }
}
