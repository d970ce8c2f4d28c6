//! Animated PNG: lossless, loops forever.

use super::Rate;
use crate::platform::files::{AtomicFile, Output};
use crate::video::Frame;
use anyhow::{Context, Result};
use std::io::BufWriter;
use std::path::Path;

pub struct Apng {
    partial: AtomicFile,
    writer: png::Writer<BufWriter<Output>>,
}

impl Apng {
    /// - `frames`: stands in the file's first bytes.
    pub fn create(path: &Path, width: usize, height: usize, rate: Rate, frames: usize, force: bool) -> Result<Apng> {
        let partial = AtomicFile::create(path, force)?;
        let out = partial.writer()?;
        let header = || -> Result<_> {
            let mut encoder = png::Encoder::new(out, u32::try_from(width)?, u32::try_from(height)?);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_animated(u32::try_from(frames)?, 0)?; // 0: for ever
            let (num, den) = rate.delay();
            encoder.set_frame_delay(num, den)?;
            Ok(encoder.write_header()?)
        };
        let writer = header().with_context(|| partial.failed())?;
        Ok(Apng { partial, writer })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        self.writer.write_image_data(&frame.rgb).with_context(|| self.partial.failed())
    }

    pub fn finish(self) -> Result<()> {
        self.writer.finish().with_context(|| self.partial.failed())?;
        self.partial.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn frames_and_delays_read_back_exactly() -> Result<()> {
        let folder = Scratch::new("apng");
        let target = folder.target("a.png");
        write_clip(&target, 13, 5, 3, 23.976, false)?;
        let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&target.path)?)).read_info()?;
        let animation = reader.info().animation_control.context("not animated")?;
        assert_eq!((animation.num_frames, animation.num_plays), (3, 0));
        for t in 0..3 {
            let mut rgb = vec![0; 13 * 5 * 3];
            reader.next_frame(&mut rgb)?;
            assert_eq!(rgb, patches(13, 5, t).rgb);
            let control = reader.info().frame_control.context("no delay")?;
            assert_eq!((control.delay_num, control.delay_den), (1001, 24000));
        }
        Ok(())
    }
}
