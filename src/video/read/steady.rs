//! A clip at a steady rate, whatever its own times are.

use super::{Info, Reader, timing};
use crate::video::Frame;
use anyhow::{Result, ensure};

/// All frames at exactly `info().fps`. Where the rate varies, each is the source's frame on screen at that time (so some
/// may come twice and some not at all); else they are the source's own.
pub struct Steady {
    pub reader: Reader,
    /// The source's frame for each of ours.
    chosen: Vec<usize>,
    at: usize,
    /// A frame that comes again.
    held: Option<Frame>,
}

impl Steady {
    pub(super) fn new(reader: Reader) -> Steady {
        let chosen = match (reader.info.fps, reader.info.seconds) {
            (Some(fps), Some(end)) if reader.info.variable_rate => timing::steady(&reader.starts, end, fps),
            _ => (0..reader.starts.len()).collect(),
        };
        Steady { reader, chosen, at: 0, held: None }
    }

    pub fn info(&self) -> &Info {
        &self.reader.info
    }

    /// The next frame; none after the last.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        let Some(&source) = self.chosen.get(self.at) else { return Ok(None) };
        let frame = match self.held.take() {
            Some(frame) => frame,
            None => {
                if self.reader.at != source {
                    self.reader.skip_to(source)?;
                }
                let timed = self.reader.next()?;
                ensure!(timed.is_some(), "`{}` ends before frame {source}", self.reader.path.display());
                let Some(timed) = timed else { return Ok(None) };
                timed.frame
            }
        };
        self.at += 1;
        if self.chosen.get(self.at) == Some(&source) {
            self.held = Some(frame.clone());
        }
        Ok(Some(frame))
    }

    /// The next frame will be number `frame`.
    pub fn skip_to(&mut self, frame: usize) {
        if frame != self.at {
            (self.at, self.held) = (frame, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::super::testing::*;
    use anyhow::{Context, Result};
    use image::codecs::gif::GifEncoder;
    use image::{Delay, Rgba, RgbaImage};

    #[test]
    fn a_gif_of_many_speeds_loses_no_picture() -> Result<()> {
        let folder = Scratch::new("steady");
        let path = folder.path("a.gif");
        let mut encoder = GifEncoder::new(std::fs::File::create(&path)?);
        for (i, ms) in [100, 100, 400, 100, 300].into_iter().enumerate() {
            let picture = RgbaImage::from_pixel(4, 4, Rgba([i as u8 * 40, 0, 0, 255]));
            encoder.encode_frame(image::Frame::from_parts(picture, 0, 0, Delay::from_numer_denom_ms(ms, 1)))?;
        }
        drop(encoder);
        let reader = open(&path)?;
        assert!(reader.info.variable_rate && reader.info.seconds == Some(1.0) && reader.info.fps == Some(10.0));
        assert_eq!(reader.notes.len(), 1, "{:?}", reader.notes);
        let mut steady = reader.steady();
        let mut seen = Vec::new();
        while let Some(frame) = steady.next_frame()? {
            seen.push(frame.rgb[0] / 40);
        }
        assert_eq!(seen, [0, 1, 2, 2, 2, 2, 3, 4, 4, 4]);
        assert_eq!(steady.info().frames, 10);
        steady.skip_to(4);
        assert_eq!(steady.next_frame()?.context("a frame")?.rgb[0], 80);
        Ok(())
    }
}
