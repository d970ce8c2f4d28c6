//! Animated WebP: lossy, loops forever. The encoder keeps the compressed clip in memory until the end.

use super::Rate;
use crate::platform::files::AtomicFile;
use crate::video::Frame;
use anyhow::{Context, Result};
use std::io::{BufWriter, Write};
use std::path::Path;
use webp_animation::{ColorMode, Encoder, EncoderOptions, EncodingConfig};

pub struct Webp {
    partial: AtomicFile,
    encoder: Encoder,
    rate: Rate,
    next: usize,
}

impl Webp {
    pub fn create(path: &Path, width: usize, height: usize, rate: Rate, quality: u8, force: bool) -> Result<Webp> {
        let partial = AtomicFile::create(path, force)?;
        // The default is to loop forever. A whole picture every two seconds at the latest lets players seek.
        let options = EncoderOptions {
            kmax: rate.gop() as isize,
            kmin: rate.gop() as isize / 2 + 1,
            color_mode: ColorMode::Rgb,
            encoding_config: Some(EncodingConfig::new_lossy(f32::from(quality))),
            ..EncoderOptions::default()
        };
        let size = (u32::try_from(width)?, u32::try_from(height)?);
        let encoder = Encoder::new_with_options(size, options).with_context(|| partial.failed())?;
        Ok(Webp { partial, encoder, rate, next: 0 })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let time = self.time()?;
        self.encoder.add_frame(&frame.rgb, time).with_context(|| self.partial.failed())?;
        self.next += 1;
        Ok(())
    }

    /// When the next frame begins, in ms.
    fn time(&self) -> Result<i32> {
        i32::try_from(self.rate.ticks(self.next, 1000)).context("the clip is longer than WebP can time")
    }

    pub fn finish(self) -> Result<()> {
        let end = self.time()?;
        let Webp { partial, encoder, .. } = self;
        let bytes = encoder.finalize(end).with_context(|| partial.failed())?;
        let write = |mut out: BufWriter<_>| out.write_all(&bytes).and_then(|()| out.flush());
        write(partial.writer()?).with_context(|| partial.failed())?;
        partial.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use webp_animation::Decoder;

    /// WebP's own limited-range colour at quality 80, on patches of 8 columns.
    const TOLERANCE: u8 = 8;

    #[test]
    fn frames_and_times_read_back() -> Result<()> {
        let folder = Scratch::new("webp");
        let target = folder.target("a.webp");
        write_clip(&target, 129, 17, 7, 23.976, false)?;
        let bytes = std::fs::read(&target.path)?;
        let frames: Vec<_> = Decoder::new(&bytes)?.into_iter().collect();
        let ends: Vec<i32> = frames.iter().map(|frame| frame.timestamp()).collect();
        assert_eq!(ends, [42, 83, 125, 167, 209, 250, 292]); // when each ends, in ms
        for (t, frame) in frames.iter().enumerate() {
            assert_eq!(frame.dimensions(), (129, 17));
            let worst = worst(frame.data(), 4, 129, 17, t);
            assert!(worst <= TOLERANCE, "frame {t}: {worst} > {TOLERANCE}");
        }
        let anim = bytes.windows(4).position(|b| b == b"ANIM").context("no animation")?;
        assert_eq!(bytes[anim + 12..anim + 14], [0, 0]); // loops for ever
        Ok(())
    }

    #[test]
    fn quality_is_heard() -> Result<()> {
        let folder = Scratch::new("webp-quality");
        let size = |quality: u8| -> Result<u64> {
            let target = folder.target(&format!("{quality}.webp"));
            let mut writer = super::super::Writer::create(&target, 64, 64, 8.0, 2, quality, false)?;
            writer.push(&noise(64, 64, 0))?;
            writer.push(&noise(64, 64, 1))?;
            writer.finish()?;
            Ok(std::fs::metadata(target.path)?.len())
        };
        let sizes = [size(10)?, size(50)?, size(100)?];
        assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
        Ok(())
    }
}
