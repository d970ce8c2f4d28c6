//! The footage on one side of a join: read at the joined clip's rate, seen by the model, and written as it is.

use crate::pipeline::inputs::{self, Preparation};
use crate::pipeline::join::seam::Watch;
use crate::platform::progress::Progress;
use crate::video::Frame;
use crate::video::read::{self, Info, Steady};
use crate::video::resize::{Fit, fit};
use crate::video::write::Writer;
use anyhow::{Result, ensure};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Footage on one side, known by its header until [`Side::read`].
pub struct Side {
    pub path: PathBuf,
    pub fps: f64,
    /// Frames of it at that rate.
    pub frames: usize,
    /// Whether the model goes on from its end, and not up to its start.
    tail: bool,
    /// The frames that the model goes on from, of its own size, clean: what the new part's colours are compared with.
    pub context: Vec<Frame>,
}

/// The pictures of a joined clip.
#[derive(Clone, Copy)]
pub struct Canvas {
    /// Width and height of the footage.
    pub shown: (usize, usize),
    /// As they are written: the same, or the next even sides, which MP4 needs.
    pub size: (usize, usize),
}

impl Canvas {
    /// Brings a frame to the clip's size. One of the footage's size keeps each of its pixels.
    pub fn bring(&self, frame: Frame) -> Frame {
        let (width, height) = self.shown;
        let same = (frame.width, frame.height) == self.shown;
        let frame = if same { frame } else { fit(&frame, width, height, Fit::Crop) };
        let (width, height) = self.size;
        if self.size == self.shown { frame } else { inputs::to_rims(&frame, width, height) }
    }
}

impl Side {
    /// - `info`: of the file. `tail`: the model is to see its end. `fps`: of the joined clip.
    pub fn new(path: &Path, info: &Info, tail: bool, fps: f64, progress: &Progress) -> Self {
        let step = step(info, fps);
        if let Some(own) = info.fps.filter(|_| step != 1.0) {
            progress.note(&format!("`{}`: its {own:.3} frames a second are brought to {fps:.3}", path.display()));
        }
        Self { path: path.to_path_buf(), fps, frames: count(info, step), tail, context: vec![] }
    }

    /// Reads the frames that the model goes on from, and returns them as it sees them.
    /// - `count`: how many, at most all. `preparation`: how the model sees them.
    /// - Errors are the user's to mend.
    pub fn read(&mut self, count: usize, preparation: &Preparation, progress: &Progress) -> Result<Vec<Frame>> {
        let mut footage = Footage::open(&self.path, self.fps)?;
        if self.tail {
            footage.at = self.frames - count;
        }
        let mut seen = vec![];
        while seen.len() < count {
            progress.check_cancelled()?;
            let Some(frame) = footage.next_frame()? else { break };
            let (width, height) = preparation.legal;
            let clean = fit(&frame, width, height, preparation.fit);
            seen.push(match preparation.changes_nothing() {
                true => clean.clone(),
                false => preparation.prepare(&frame, count == 1)?,
            });
            self.context.push(clean);
        }
        inputs::tell(&mut footage.steady.reader, &self.path, progress);
        let read = seen.len();
        ensure!(read == count, "`{}` ends after {read} of {} frames", self.path.display(), self.frames);
        Ok(seen)
    }

    /// Lets `watch` see some of the footage.
    pub fn watch(&self, canvas: Canvas, frames: Range<usize>, watch: &mut Watch, progress: &Progress) -> Result<()> {
        let mut footage = Footage::open(&self.path, self.fps)?;
        footage.at = frames.start;
        for _ in frames {
            progress.check_cancelled()?;
            let Some(frame) = footage.next_frame()? else { break };
            watch.push(&canvas.bring(frame));
        }
        Ok(())
    }

    /// Writes the footage as it is: its own samples or files where the output can take them, else its frames; where its
    /// pictures have another size than the joined clip, brought to that.
    /// - `watched`: frames that `watch` sees.
    pub fn copy(
        &self,
        canvas: Canvas,
        writer: &mut Writer,
        watched: Range<usize>,
        watch: &mut Watch,
        progress: &Progress,
    ) -> Result<()> {
        if writer.copy_clip(&self.path)? {
            return self.watch(canvas, watched, watch, progress);
        }
        let mut footage = Footage::open(&self.path, self.fps)?;
        let mut i = 0;
        while let Some(frame) = footage.next_frame()? {
            progress.check_cancelled()?;
            let same = (frame.width, frame.height) == canvas.size;
            let frame = canvas.bring(frame);
            match footage.steady.reader.file(i).filter(|_| same && footage.step == 1.0) {
                Some(file) => writer.push_file(&frame, file)?,
                None => writer.push(&frame)?,
            }
            if watched.contains(&i) {
                watch.push(&frame);
            }
            i += 1;
        }
        inputs::tell(&mut footage.steady.reader, &self.path, progress);
        ensure!(i == self.frames, "`{}` ends after {i} of {} frames", self.path.display(), self.frames);
        Ok(())
    }
}

/// Frames of the source for one at `fps` a second; 1 where the rates are one, and where the source has none of its own.
fn step(info: &Info, fps: f64) -> f64 {
    /// Rates as close as this are one rate, written differently.
    const SAME: f64 = 1e-3;
    let step = info.fps.map_or(1.0, |own| own / fps);
    if (step - 1.0).abs() < SAME { 1.0 } else { step }
}

/// Frames that come of a source.
fn count(info: &Info, step: f64) -> usize {
    ((info.frames as f64 / step).round() as usize).max(1)
}

/// A clip at a given rate: each frame is the one that its source shows at that time.
struct Footage {
    steady: Steady,
    /// Frames of the source a frame; 1 where the rates are one.
    step: f64,
    count: usize,
    at: usize,
    /// The source's frame that was read last, which may be shown again.
    shown: Option<(usize, Frame)>,
}

impl Footage {
    /// - `fps`: of the frames that come; a source without a rate of its own has it.
    fn open(path: &Path, fps: f64) -> Result<Self> {
        let mut steady = read::open(path)?.steady();
        steady.reader.news(); // told when the clip was first opened
        let step = step(steady.info(), fps);
        let count = count(steady.info(), step);
        Ok(Self { steady, step, count, at: 0, shown: None })
    }

    fn next_frame(&mut self) -> Result<Option<Frame>> {
        if self.at >= self.count {
            return Ok(None);
        }
        let last = self.steady.info().frames - 1;
        let source = ((self.at as f64 * self.step + 1e-6) as usize).min(last); // a hair up: 2.999… is 3
        self.at += 1;
        if let Some((shown, frame)) = &self.shown
            && *shown == source
        {
            return Ok(Some(frame.clone()));
        }
        self.steady.skip_to(source);
        let Some(frame) = self.steady.next_frame()? else { return Ok(None) };
        if self.step < 1.0 {
            self.shown = Some((source, frame.clone()));
        }
        Ok(Some(frame))
    }
}

#[cfg(all(test, feature = "h264"))]
mod tests {
    use crate::job::recipe::Recipe;
    use crate::pipeline::join::*;
    use crate::platform::cancel::Cancelled;
    use crate::video::resize::degrade;

    /// The model sees the context prepared as every other picture that it holds; colours are compared with the clean one.
    #[test]
    fn context_is_prepared_as_what_is_held() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..9u8 {
            let value = |x: u32, y: u32| image::Rgb([(x * 5) as u8, (y * 7) as u8, 20 * i]);
            let frame = image::RgbImage::from_fn(48, 32, value);
            frame.save(folder.path().join(format!("{i:05}.png"))).unwrap();
        }
        let silent = Progress::silent();
        let info = inputs::open(folder.path(), "the clip", &silent).unwrap().info;
        let size = (48, 32);
        let preparation = |crf, recipe| {
            let fit = Fit::Stretch;
            Preparation { clip: size, legal: size, largest: size, fit, crf, recipe, moved: true }
        };
        for recipe in [Recipe::Lightricks, Recipe::Diffusers] {
            let read = |crf| {
                let mut side = Side::new(folder.path(), &info, true, 8.0, &silent);
                let seen = side.read(9, &preparation(crf, recipe), &silent).unwrap();
                (side.context, seen)
            };
            let (clean, seen) = read(40);
            assert_eq!((clean.len(), seen.len()), (9, 9));
            for (clean, seen) in clean.iter().zip(&seen) {
                assert!(*seen == degrade(clean, 40).unwrap() && seen != clean, "{recipe:?}");
            }
            let (clean, seen) = read(0);
            assert!(seen == clean, "{recipe:?}: 0 is none");
        }
        silent.cancel().cancel();
        let mut side = Side::new(folder.path(), &info, true, 8.0, &silent);
        assert!(Cancelled::caused(&side.read(9, &preparation(0, Recipe::Diffusers), &silent).unwrap_err()));
    }
}
