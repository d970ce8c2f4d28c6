//! Clips to files: `Target` is what `-o` asked for, `Writer` takes the frames as they come.
//!
//! A file is written beside its final name and renamed when it is complete (`platform::files`). One frame is in memory at a time,
//! but for WebP, whose encoder keeps the compressed clip until the end.

use crate::platform::fault::{Fault, Mark};
use crate::video::Frame;
use anyhow::{Result, bail, ensure};
use std::path::{Path, PathBuf};

mod apng;
#[cfg(feature = "h264")]
mod bits;
mod check;
mod colour;
mod frames;
mod gif;
#[cfg(feature = "h264")]
mod mp4;
#[cfg(feature = "h264")]
mod mp4_boxes;
#[cfg(feature = "h264")]
mod mp4_encoder;
#[cfg(feature = "h264")]
mod mp4_sets;
#[cfg(feature = "h264")]
mod mp4_tags;
mod rate;
#[cfg(test)]
mod testing;
mod webp;
mod y4m;

use rate::Rate;

/// The forms a clip can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// H.264, 4:2:0, BT.709 limited range, index before the data.
    Mp4,
    /// Animated, 256 colours a frame.
    Gif,
    /// Animated, lossy.
    Webp,
    /// Animated PNG, lossless.
    Apng,
    /// A folder of `00000.png`, `00001.png`, ..., lossless.
    Frames,
    /// Raw video on standard output, to be piped.
    Y4m,
}

/// Where and in what form a clip is written, from what PATH ends in.
/// - `path`: `-` for standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub format: Format,
    pub path: PathBuf,
}

const CHOICES: &str = "end it in `.mp4`, `.gif`, `.webp` or `.png` (animated), or in `/` for a folder of PNG frames; \
                       `-` is raw video (Y4M) on standard output";

/// A clip, as far as it has to be known before its first frame.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    pub width: usize,
    pub height: usize,
    pub frames: usize,
    pub fps: f64,
}

/// What a clip's size comes from, and so what a user can change about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// `--size`.
    Asked,
    /// `--size`, so many times by `--scale`.
    Scaled(usize),
    /// The footage that it continues: no flag changes that.
    Footage,
}

/// Tells whether a path names a folder that is there, to put a file into. One that ends in `/` names frames.
pub fn is_folder(path: &Path) -> bool {
    !ends_in_separator(path) && path.is_dir()
}

fn ends_in_separator(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().last().is_some_and(|&byte| std::path::is_separator(byte.into()))
}

impl Target {
    /// Reads the form off the path: `.mp4`, `.gif`, `.webp`, `.png` (APNG) in any case; frames in a folder when it ends in `/`
    /// or has no extension; `-` is Y4M on standard output.
    /// - Errors when the path is empty or its extension is none of these.
    pub fn parse(path: impl AsRef<Path>) -> Result<Target> {
        let path = path.as_ref();
        ensure!(!path.as_os_str().is_empty(), "the output path is empty\n  fix: {CHOICES}");
        let target = |format| Ok(Target { format, path: path.to_path_buf() });
        if path.as_os_str() == "-" {
            return target(Format::Y4m);
        }
        if ends_in_separator(path) {
            return target(Format::Frames);
        }
        let Some(extension) = path.extension() else {
            return target(Format::Frames);
        };
        match extension.to_string_lossy().to_ascii_lowercase().as_str() {
            "mp4" => target(Format::Mp4),
            "gif" => target(Format::Gif),
            "webp" => target(Format::Webp),
            "png" | "apng" => target(Format::Apng),
            other => bail!(
                "-o: cannot write `{}`: `.{other}` is not a form that reel writes\n  fix: {CHOICES}",
                path.display()
            ),
        }
    }

    /// Everything that can be wrong with the place before the long part: an output that exists or is no file, a folder that is
    /// missing or cannot be written. Leaves nothing behind.
    /// - `force`: an existing output may be replaced.
    pub fn check_place(&self, force: bool) -> Result<()> {
        check::place(self, force)
    }

    /// A size, a length or a rate that the form cannot hold.
    pub fn check_clip(&self, clip: &Clip, sizing: Sizing) -> Result<()> {
        check::size(self.format, clip.width, clip.height, sizing)?;
        check::length(self.format, clip.frames, Rate::new(clip.fps)?)
    }
}

/// Takes a clip's frames in order. Dropped before `finish`, it removes what it had begun.
pub struct Writer {
    sink: Sink,
    width: usize,
    height: usize,
    frames: usize,
    pushed: usize,
}

enum Sink {
    #[cfg(feature = "h264")]
    Mp4(Box<mp4::Mp4>),
    Gif(gif::Gif),
    Webp(Box<webp::Webp>),
    Apng(apng::Apng),
    Frames(frames::Frames),
    Y4m(y4m::Y4m<std::io::Stdout>),
}

impl Writer {
    /// - `fps`: may be fractional; 23.976, 29.97 and their like mean 24000/1001, 30000/1001.
    /// - `frames`: exactly as many as will be pushed, at least one.
    /// - `quality`: 1 to 100; MP4 turns it into a constant quantiser, WebP hands it to libwebp, the others ignore it.
    /// - `force`: replaces an existing output, at `finish` (frames in a folder too).
    /// - Errors as `Target::check_place` and `Target::check_clip` do, and when a number is out of range.
    pub fn create(
        target: &Target,
        width: usize,
        height: usize,
        fps: f64,
        frames: usize,
        quality: u8,
        force: bool,
    ) -> Result<Writer> {
        target.check_place(force)?;
        target.check_clip(&Clip { width, height, frames, fps }, Sizing::Asked)?;
        ensure!(frames > 0, "cannot write `{}`: the clip has no frames", target.path.display());
        ensure!((1..=100).contains(&quality), "quality {quality} is out of range\n  fix: --quality 1 to 100");
        let rate = Rate::new(fps)?;
        let path = &target.path;
        let sink = match target.format {
            #[cfg(feature = "h264")]
            Format::Mp4 => Sink::Mp4(Box::new(mp4::Mp4::create(path, width, height, rate, frames, quality, force)?)),
            #[cfg(not(feature = "h264"))]
            Format::Mp4 => bail!(check::NO_H264),
            Format::Gif => Sink::Gif(gif::Gif::create(path, width, height, rate, force)?),
            Format::Webp => Sink::Webp(Box::new(webp::Webp::create(path, width, height, rate, quality, force)?)),
            Format::Apng => Sink::Apng(apng::Apng::create(path, width, height, rate, frames, force)?),
            Format::Frames => Sink::Frames(frames::Frames::create(path, force)?),
            Format::Y4m => Sink::Y4m(y4m::Y4m::create(std::io::stdout(), width, height, rate)?),
        };
        Ok(Writer { sink, width, height, frames, pushed: 0 })
    }

    /// Writes the next frame.
    /// - Errors when its size is not the clip's, when the clip is already full, or when it cannot be written.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let (w, h, n) = (self.width, self.height, self.pushed);
        ensure!(
            (frame.width, frame.height, frame.rgb.len()) == (w, h, w * h * 3),
            "frame {n} is {}x{} with {} bytes, in a clip of {w}x{h}",
            frame.width,
            frame.height,
            frame.rgb.len()
        );
        ensure!(n < self.frames, "frame {n} is one more than the {} that the clip was to have", self.frames);
        let done = match &mut self.sink {
            #[cfg(feature = "h264")]
            Sink::Mp4(sink) => sink.push(frame),
            Sink::Gif(sink) => sink.push(frame),
            Sink::Webp(sink) => sink.push(frame),
            Sink::Apng(sink) => sink.push(frame),
            Sink::Frames(sink) => sink.push(frame),
            Sink::Y4m(sink) => sink.push(frame),
        };
        done.fault(Fault::Machine)?; // the place and the clip's size were in order: it is the disk, or an encoder
        self.pushed += 1;
        Ok(())
    }

    /// Writes the next frame, which `file` holds too: into a folder of PNG frames a PNG file goes byte for byte.
    /// - Errors as `push` does, and when the file cannot be read.
    pub fn push_file(&mut self, frame: &Frame, file: &Path) -> Result<()> {
        let png = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
        match &mut self.sink {
            Sink::Frames(sink) if png && self.pushed < self.frames => {
                sink.copy(file)?;
                self.pushed += 1;
                Ok(())
            }
            _ => self.push(frame),
        }
    }

    /// Says that this clip will be copied after frames have been pushed, so that those are encoded under numbers that it does
    /// not use, and one sample description does for all: players that look at the first one only need that. Call it before
    /// the first push, for each such clip; without it the file is right too, but browsers stop where the clip begins.
    pub fn expect_clip(&mut self, path: &Path) {
        match &mut self.sink {
            #[cfg(feature = "h264")]
            Sink::Mp4(sink) => sink.expect(path),
            _ => _ = path,
        }
    }

    /// Writes a clip's own samples, unchanged: only from MP4 (or MOV) to MP4, anywhere among the frames that are pushed.
    /// They count as as many frames as the reader announces. The sound is left out.
    /// - Returns false, with nothing written, where the copy would not be exact: the output is not MP4; the clip is not one
    ///   that our own decoder reads (progressive H.264, 8-bit 4:2:0) or holds pixels that are not square; its size or rate
    ///   is not the output's, or its rate varies; it is turned; its edit list hides frames; its first frame does not stand
    ///   alone; it tells other colours than what is in the file already.
    /// - Errors when it has more frames than are to come, or when it cannot be read or written.
    pub fn copy_clip(&mut self, path: &Path) -> Result<bool> {
        match &mut self.sink {
            #[cfg(feature = "h264")]
            Sink::Mp4(sink) => {
                let copied = sink.copy(path, self.frames - self.pushed)?;
                self.pushed += copied.unwrap_or(0);
                Ok(copied.is_some())
            }
            _ => {
                let _ = path; // there is nothing to look for in it
                Ok(false)
            }
        }
    }

    /// Completes the file and gives it its name.
    /// - Errors when frames are missing, when a file took the name meanwhile (without force), or when writing fails; the
    ///   output is then as it was before.
    pub fn finish(self) -> Result<()> {
        let (pushed, frames) = (self.pushed, self.frames);
        ensure!(pushed == frames, "the clip ended after {pushed} of {frames} frames");
        match self.sink {
            #[cfg(feature = "h264")]
            Sink::Mp4(sink) => sink.finish(),
            Sink::Gif(sink) => sink.finish(),
            Sink::Webp(sink) => sink.finish(),
            Sink::Apng(sink) => sink.finish(),
            Sink::Frames(sink) => sink.finish(),
            Sink::Y4m(sink) => sink.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn the_path_names_the_form() {
        let format = |path: &str| Target::parse(path).map(|t| t.format).ok();
        assert_eq!(format("a/ball.mp4"), Some(Format::Mp4));
        assert_eq!(format("BALL.MP4"), Some(Format::Mp4));
        assert_eq!(format("ball.Gif"), Some(Format::Gif));
        assert_eq!(format("ball.webp"), Some(Format::Webp));
        assert_eq!(format("ball.png"), Some(Format::Apng));
        assert_eq!(format("-"), Some(Format::Y4m));
        assert_eq!(format("frames"), Some(Format::Frames));
        assert_eq!(format("ball.mov/"), Some(Format::Frames));
        assert!(is_folder(&std::env::temp_dir()) && !is_folder(&std::env::temp_dir().join("")));
        let error = Target::parse("ball.mov").expect_err("mov").to_string();
        assert!(error.contains("`.mov`") && error.contains("`.webp`") && error.contains("fix:"), "{error}");
        assert!(Target::parse("").is_err());
    }

    #[test]
    fn an_existing_output_is_refused_before_and_after() -> Result<()> {
        let folder = Scratch::new("exists");
        for name in ["a.gif", "a.webp", "a.png"] {
            let target = folder.target(name);
            write_clip(&target, 6, 4, 2, 8.0, false)?;
            let before = std::fs::read(&target.path)?;
            let error = target.check_place(false).expect_err(name).to_string();
            assert!(error.contains("--force"), "{error}");
            write_clip(&target, 6, 4, 3, 8.0, true)?;
            assert_ne!(std::fs::read(&target.path)?, before);
        }
        let target = folder.target("late.gif");
        let mut writer = Writer::create(&target, 6, 4, 8.0, 1, 80, false)?;
        writer.push(&patches(6, 4, 0))?;
        std::fs::write(&target.path, "another's")?;
        assert!(writer.finish().is_err());
        assert_eq!(std::fs::read(&target.path)?, b"another's");
        assert_eq!(folder.names(), ["a.gif", "a.png", "a.webp", "late.gif"]);
        Ok(())
    }

    #[test]
    fn a_dropped_writer_leaves_nothing() -> Result<()> {
        let folder = Scratch::new("drop");
        for name in FILES {
            let target = folder.target(name);
            let mut writer = Writer::create(&target, 18, 16, 8.0, 2, 80, false)?;
            assert_eq!(folder.names().len(), 1, "{name} has no partial file");
            writer.push(&patches(18, 16, 0))?;
            drop(writer);
            assert!(folder.names().is_empty(), "{:?}", folder.names());
        }
        drop(Writer::create(&folder.target("frames/"), 6, 4, 8.0, 2, 80, false)?);
        assert!(folder.names().is_empty(), "{:?}", folder.names());
        Ok(())
    }

    #[test]
    fn too_few_too_many_and_misshapen_frames_are_errors() -> Result<()> {
        let folder = Scratch::new("count");
        for name in FILES {
            let mut writer = Writer::create(&folder.target(name), 18, 16, 8.0, 2, 80, false)?;
            assert!(writer.push(&patches(16, 18, 0)).is_err());
            writer.push(&patches(18, 16, 0))?;
            assert!(writer.finish().is_err());
            let mut writer = Writer::create(&folder.target(name), 18, 16, 8.0, 1, 80, false)?;
            writer.push(&patches(18, 16, 0))?;
            assert!(writer.push(&patches(18, 16, 1)).is_err());
        }
        let gif = folder.target("a.gif");
        assert!(Writer::create(&gif, 6, 4, 8.0, 0, 80, false).is_err());
        assert!(Writer::create(&gif, 6, 4, 0.0, 1, 80, false).is_err());
        assert!(Writer::create(&gif, 6, 4, 8.0, 1, 0, false).is_err());
        assert!(folder.names().is_empty(), "{:?}", folder.names());
        Ok(())
    }

    #[test]
    fn the_same_frames_give_the_same_bytes() -> Result<()> {
        let folder = Scratch::new("same");
        for name in FILES {
            let bytes = |prefix: &str| -> Result<Vec<u8>> {
                let target = folder.target(&format!("{prefix}{name}"));
                write_clip(&target, 34, 18, 5, 23.976, false)?;
                Ok(std::fs::read(target.path)?)
            };
            assert_eq!(bytes("one")?, bytes("two")?, "{name}");
        }
        Ok(())
    }
}
