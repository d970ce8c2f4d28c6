//! GIF, animated WebP and animated PNG: frames as a viewer shows them, laid over each other by their own rules.

use super::{Clip, Remarks, Source, limits};
use crate::video::Frame;
use anyhow::{Context, Result, ensure};
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frames, ImageDecoder, ImageFormat};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Forward only: such files have no index, and each frame needs those before it.
pub struct Animation {
    frames: Frames<'static>,
    at: usize,
}

fn frames(path: &Path, format: ImageFormat) -> Result<(Frames<'static>, usize, usize)> {
    let file = BufReader::new(File::open(path)?);
    let checked = |(width, height): (u32, u32)| -> Result<(usize, usize)> {
        super::check_size(width as usize, height as usize)?;
        Ok((width as usize, height as usize))
    };
    let (frames, size) = match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(file)?;
            let size = checked(decoder.dimensions())?;
            decoder.set_limits(limits())?;
            (decoder.into_frames(), size)
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(file)?;
            let size = checked(decoder.dimensions())?;
            decoder.set_limits(limits())?;
            (decoder.into_frames(), size)
        }
        _ => {
            let decoder = PngDecoder::with_limits(file, limits())?;
            let size = checked(decoder.dimensions())?;
            (decoder.apng()?.into_frames(), size)
        }
    };
    Ok((frames, size.0, size.1))
}

/// Whether the file says that it moves. (A GIF only shows it by its second frame.)
pub fn moves(path: &Path, format: ImageFormat) -> Result<bool> {
    let file = BufReader::new(File::open(path)?);
    Ok(match format {
        ImageFormat::Gif => true,
        ImageFormat::WebP => WebPDecoder::new(file)?.has_animation(),
        ImageFormat::Png => PngDecoder::with_limits(file, limits())?.is_apng()?,
        _ => false,
    })
}

/// Seconds that a frame stands. What cannot be meant (a GIF's 0 or 10 ms) is a tenth, as browsers and `ffmpeg` have it.
fn seconds(frame: &image::Frame, format: ImageFormat) -> f64 {
    let (num, den) = frame.delay().numer_denom_ms();
    let seconds = f64::from(num) / f64::from(den.max(1)) / 1000.0;
    let least = if format == ImageFormat::Gif { 0.015 } else { 0.0 };
    if seconds > least { seconds } else { 0.1 }
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Gif => "GIF",
        ImageFormat::WebP => "WebP",
        _ => "APNG",
    }
}

/// Decodes the file once to count its frames and to find what is damaged, and begins again.
pub fn open(path: &Path, format: ImageFormat, remarks: &mut Remarks) -> Result<Clip> {
    let (counted, width, height) = frames(path, format)?;
    let (mut starts, mut end) = (Vec::new(), 0.0);
    for frame in counted {
        let frame = frame.with_context(|| format!("frame {} is damaged or cut short", starts.len()))?;
        starts.push(end);
        end += seconds(&frame, format);
        remarks.alpha |= !remarks.alpha && frame.buffer().pixels().any(|pixel| pixel.0[3] < 255);
    }
    ensure!(!starts.is_empty(), "there are no frames in it");
    let tick = if format == ImageFormat::Gif { 0.01 } else { 0.001 };
    Ok(Clip {
        source: Box::new(Animation { frames: frames(path, format)?.0, at: 0 }),
        width,
        height,
        still: starts.len() == 1,
        starts,
        end: Some(end),
        tick,
        codec: name(format).to_string(),
        sound: false,
        path: PathBuf::from(path),
    })
}

impl Source for Animation {
    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(frame) = self.frames.next() else { return Ok(None) };
        let frame = frame.with_context(|| format!("frame {} is damaged", self.at))?;
        self.at += 1;
        Ok(Some(super::still::frame(DynamicImage::ImageRgba8(frame.into_buffer()), &mut Remarks::default())))
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        while self.at < frame && self.next()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::video::read::open;

    #[test]
    fn written_animations_come_back() -> Result<()> {
        let folder = Scratch::new("animation");
        for (name, tolerance) in [("a.gif", 0), ("a.png", 0), ("a.webp", 12)] {
            let path = folder.path(name);
            write_clip(&path, 96, 32, 7, 12.5)?;
            let mut reader = open(&path)?;
            let info = reader.info.clone();
            assert_eq!((info.width, info.height, info.frames, info.fps), (96, 32, 7, Some(12.5)), "{name}");
            assert!(!info.still && !info.variable_rate);
            for t in 0..7 {
                let timed = reader.next()?.context("a frame")?;
                assert!((timed.start - t as f64 * 0.08).abs() < 1e-6, "{name}: {}", timed.start);
                assert!(worst_patch(&timed.frame, t) <= tolerance, "{name} {t}: {}", worst_patch(&timed.frame, t));
            }
            assert!(reader.next()?.is_none());
            reader.skip_to(5)?;
            assert!(worst_patch(&reader.next()?.context("a frame")?.frame, 5) <= tolerance);
            let bytes = std::fs::read(&path)?;
            std::fs::write(&path, &bytes[..bytes.len() * 2 / 3])?;
            let error = open(&path).err().context("an error")?.to_string();
            assert!(error.contains("fix:"), "{name}: {error}");
        }
        Ok(())
    }
}
