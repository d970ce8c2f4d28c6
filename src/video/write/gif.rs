//! Animated GIF: a palette of 256 for every frame (NeuQuant, or exact where that many are enough), loops forever.

use super::Rate;
use crate::platform::files::{AtomicFile, Output};
use crate::video::Frame;
use anyhow::{Context, Result, ensure};
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, RgbaImage};
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::path::Path;

pub struct Gif {
    partial: AtomicFile,
    encoder: GifEncoder<BufWriter<Output>>,
    rate: Rate,
    next: usize,
}

/// Pixels that NeuQuant learns a palette from: more are hardly better, and cost in proportion.
const LEARN: usize = 40_000;
/// A GIF ends in this byte.
const TRAILER: u8 = b';';

impl Gif {
    pub fn create(path: &Path, width: usize, height: usize, rate: Rate, force: bool) -> Result<Gif> {
        let partial = AtomicFile::create(path, force)?;
        let one_in = (width * height / LEARN).clamp(1, 30) as i32; // the encoder's limits
        let mut encoder = GifEncoder::new_with_speed(partial.writer()?, one_in);
        encoder.set_repeat(Repeat::Infinite).with_context(|| partial.failed())?;
        Ok(Gif { partial, encoder, rate, next: 0 })
    }

    /// A delay is whole hundredths of a second: the difference of rounded times, so that the clip keeps its length.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let rgba = frame.rgb.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, 255]).collect();
        let picture = RgbaImage::from_raw(frame.width as u32, frame.height as u32, rgba).context("a frame's size")?;
        let hundredths = self.rate.ticks(self.next + 1, 100) - self.rate.ticks(self.next, 100);
        let delay = Delay::from_numer_denom_ms(hundredths as u32 * 10, 1);
        let frame = image::Frame::from_parts(picture, 0, 0, delay);
        self.encoder.encode_frame(frame).with_context(|| self.partial.failed())?;
        self.next += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        let Gif { partial, encoder, .. } = self;
        drop(encoder); // writes the closing byte and what was buffered, and keeps errors to itself: look
        let mut out = partial.file();
        let mut last = [0];
        out.seek(SeekFrom::End(-1)).with_context(|| partial.failed())?;
        out.read_exact(&mut last).with_context(|| partial.failed())?;
        ensure!(
            last == [TRAILER],
            "{}: its end is missing: the disk is full, or the shell's limit (`ulimit -f`) is reached\n  fix: make room, or write to another disk",
            partial.failed()
        );
        partial.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;

    #[test]
    fn frames_and_delays_read_back() -> Result<()> {
        let folder = Scratch::new("gif");
        let target = folder.target("a.gif");
        write_clip(&target, 33, 7, 25, 24.0, false)?;
        assert!(std::fs::read(&target.path)?.windows(11).any(|bytes| bytes == b"NETSCAPE2.0"));
        let decoder = GifDecoder::new(std::io::BufReader::new(std::fs::File::open(&target.path)?))?;
        let frames = decoder.into_frames().collect_frames()?;
        assert_eq!(frames.len(), 25);
        let delays: Vec<u32> = frames.iter().map(|f| f.delay().numer_denom_ms().0).collect();
        assert_eq!(delays[..4], [40, 40, 50, 40]);
        assert_eq!(delays.iter().sum::<u32>(), 1040); // 25 / 24 s
        for (t, frame) in frames.iter().enumerate() {
            assert_eq!(worst(frame.buffer(), 4, 33, 7, t), 0);
        }
        Ok(())
    }

    #[test]
    fn many_colours_come_close() -> Result<()> {
        let folder = Scratch::new("gif-colours");
        let target = folder.target("a.gif");
        let (width, height) = (64, 48);
        let pixel = |i: usize| [(i % width * 4) as u8, (i / width * 5) as u8, 90];
        let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
        let mut writer = super::super::Writer::create(&target, width, height, 8.0, 1, 80, false)?;
        writer.push(&Frame { width, height, rgb: rgb.clone() })?;
        writer.finish()?;
        let got = image::open(&target.path)?.into_rgb8().into_raw();
        let sum: f64 = rgb.iter().zip(&got).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(sum / (rgb.len() as f64) < 6.0, "{}", sum / rgb.len() as f64);
        Ok(())
    }
}
