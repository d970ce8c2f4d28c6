//! The footage on one side of a join: read at the joined clip's rate, seen by the model, and written as it is.

use crate::geometry::Geometry;
use crate::inputs::{self, Preparation};
use crate::progress::Progress;
use crate::seam::Watch;
use crate::video::Frame;
use crate::video::read::{self, Steady};
use crate::video::resize::{Fit, fit};
use crate::video::write::Writer;
use anyhow::{Result, ensure};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Footage on one side.
pub struct Side {
    pub path: PathBuf,
    pub fps: f64,
    /// Frames of it at that rate.
    pub frames: usize,
    /// The frames that the model goes on from, of its own size, clean: what the new part's colours are compared with.
    pub context: Vec<Frame>,
    /// The same as the model sees them.
    pub seen: Vec<Frame>,
}

impl Side {
    /// - `tail`: take the context from the footage's end. `most`: latent frames of context. `fps`: of the joined clip.
    ///   `preparation`: how the model sees the context.
    pub fn read(
        path: &Path,
        tail: bool,
        most: usize,
        fps: f64,
        preparation: &Preparation,
        geometry: Geometry,
        progress: &Progress,
    ) -> Result<Self> {
        let info = inputs::open(path, "the clip", progress)?.info;
        let own = info.fps.unwrap_or(fps);
        let mut footage = Footage::open(path, fps)?;
        if footage.step != 1.0 {
            progress.note(&format!("`{}`: its {own:.3} frames a second are brought to {fps:.3}", path.display()));
        }
        let mut side = Self { path: path.to_path_buf(), fps, frames: footage.count, context: vec![], seen: vec![] };
        let count = ((side.frames - 1) / geometry.time).min(most - 1) * geometry.time + 1;
        if tail {
            footage.at = side.frames - count;
        }
        while side.context.len() < count {
            let Some(frame) = footage.next_frame()? else { break };
            let (width, height) = preparation.legal;
            let clean = fit(&frame, width, height, preparation.fit);
            side.seen.push(match preparation.changes_nothing() {
                true => clean.clone(),
                false => preparation.prepare(&frame, count == 1)?,
            });
            side.context.push(clean);
        }
        let read = side.context.len();
        ensure!(read == count, "`{}` ends after {read} of {} frames", path.display(), side.frames);
        Ok(side)
    }

    /// Lets `watch` see some of the footage.
    pub fn watch(&self, frames: Range<usize>, watch: &mut Watch) -> Result<()> {
        let mut footage = Footage::open(&self.path, self.fps)?;
        footage.at = frames.start;
        for _ in frames {
            let Some(frame) = footage.next_frame()? else { break };
            watch.push(&frame);
        }
        Ok(())
    }

    /// Writes the footage as it is: its own samples or files where the output can take them, else its frames; where its
    /// pictures have another size than the joined clip, brought to that.
    /// - `watched`: frames that `watch` sees.
    pub fn copy(
        &self,
        (width, height): (usize, usize),
        writer: &mut Writer,
        watched: Range<usize>,
        watch: &mut Watch,
    ) -> Result<()> {
        if writer.copy_clip(&self.path)? {
            return self.watch(watched, watch);
        }
        let mut footage = Footage::open(&self.path, self.fps)?;
        let mut i = 0;
        while let Some(frame) = footage.next_frame()? {
            let same = (frame.width, frame.height) == (width, height);
            let frame = if same { frame } else { fit(&frame, width, height, Fit::Crop) };
            match footage.steady.reader.file(i).filter(|_| same && footage.step == 1.0) {
                Some(file) => writer.push_file(&frame, file)?,
                None => writer.push(&frame)?,
            }
            if watched.contains(&i) {
                watch.push(&frame);
            }
            i += 1;
        }
        ensure!(i == self.frames, "`{}` ends after {i} of {} frames", self.path.display(), self.frames);
        Ok(())
    }
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
        /// Rates as close as this are one rate, written differently.
        const SAME: f64 = 1e-3;
        let steady = read::open(path)?.steady();
        let step = steady.info().fps.map_or(1.0, |own| own / fps);
        let step = if (step - 1.0).abs() < SAME { 1.0 } else { step };
        let count = ((steady.info().frames as f64 / step).round() as usize).max(1);
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
