//! Frames in groups: what every temporal layer carries from one group to the next.
//!
//! A layer that looks at neighbouring frames answers later than it is asked. In a stream it keeps the frames that it still
//! needs, so that any grouping of the input gives the frames that the whole input gives. What is kept is copied, always: a view
//! would keep the whole group alive.

use candle_core::{Result, Tensor};

/// The frame axis of (b, frames, h, w, c).
pub const FRAMES: usize = 1;

/// How many frames are at work at once; any numbers give the same pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Latent frames that go in at a time.
    pub latent_frames: usize,
    /// Into how many parts the frames that they become are cut on the way.
    pub slices: usize,
}

impl Chunking {
    /// All at once.
    pub const WHOLE: Chunking = Chunking { latent_frames: usize::MAX, slices: 1 };

    /// Frames at a time, where a latent frame has become `rate`.
    pub fn frames(self, rate: usize) -> usize {
        (self.latent_frames.saturating_mul(rate) / self.slices.max(1)).max(1)
    }
}

#[derive(Clone, Debug, Default)]
struct Slot {
    frames: Option<Tensor>,
    started: bool,
}

/// What all layers of one network carry, in the order in which they run.
/// - Call [`Stream::next_group`] before each group, and run the same layers in the same order each time, also those that
///   get no frames this time.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    slots: Vec<Slot>,
    cursor: usize,
    last: bool,
}

impl Stream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the next group of frames. `last`: no more will come, so layers give out all they hold.
    pub fn next_group(&mut self, last: bool) {
        (self.cursor, self.last) = (0, last);
    }

    /// The window that a kernel over `before + 1 + after` frames may run over, in parts that follow each other: the frames carried
    /// from earlier groups, then `x`; at the clip's ends the first and the last frame are repeated.
    /// - `None` while there are too few frames for one answer.
    pub fn window(&mut self, x: Option<&Tensor>, before: usize, after: usize) -> Result<Option<Vec<Tensor>>> {
        let last = self.last;
        let slot = self.slot();
        let mut parts: Vec<Tensor> = slot.frames.take().into_iter().collect();
        if let Some(x) = x {
            if !slot.started {
                parts.extend(vec![x.narrow(FRAMES, 0, 1)?; before]);
            }
            slot.started = true;
            parts.push(x.clone());
        }
        if last && let Some(end) = parts.last() {
            let end = end.narrow(FRAMES, end.dim(FRAMES)? - 1, 1)?;
            parts.extend(vec![end; after]);
        }
        let mut count = 0;
        for part in &parts {
            count += part.dim(FRAMES)?;
        }
        let context = before + after;
        if !last && context > 0 && count > 0 {
            slot.frames = Some(latest(&parts, context.min(count))?);
        }
        Ok(if count > context { Some(parts) } else { None })
    }

    /// The windows of a causal kernel over `before + 1` frames that moves `stride` frames at a time: as [`Stream::window`], with
    /// the frames that the next window begins at carried on. What is left at the end is no whole window and is dropped.
    pub fn strided_window(&mut self, x: Option<&Tensor>, before: usize, stride: usize) -> Result<Option<Tensor>> {
        let slot = self.slot();
        let mut parts: Vec<Tensor> = slot.frames.take().into_iter().collect();
        if let Some(x) = x {
            if !slot.started {
                parts.push(repeat(&x.narrow(FRAMES, 0, 1)?, before)?);
            }
            slot.started = true;
            parts.push(x.clone());
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let all = Tensor::cat(&parts, FRAMES)?;
        let count = all.dim(FRAMES)?;
        let windows = (count + stride).saturating_sub(before + 1) / stride;
        let used = windows * stride;
        if used < count {
            slot.frames = Some(all.narrow(FRAMES, used, count - used)?.force_contiguous()?);
        }
        if windows == 0 { Ok(None) } else { Ok(Some(all.narrow(FRAMES, 0, used - stride + before + 1)?)) }
    }

    /// Repeats the clip's first frame `count` times in front of it.
    pub fn repeat_first(&mut self, x: Option<&Tensor>, count: usize) -> Result<Option<Tensor>> {
        let slot = self.slot();
        match x {
            Some(x) if !slot.started && count > 0 => {
                slot.started = true;
                Ok(Some(Tensor::cat(&[&repeat(&x.narrow(FRAMES, 0, 1)?, count)?, x], FRAMES)?))
            }
            x => Ok(x.cloned()),
        }
    }

    /// As many frames as make whole groups of `size`; the rest waits for the next call.
    pub fn whole(&mut self, x: Option<&Tensor>, size: usize) -> Result<Option<Tensor>> {
        let slot = self.slot();
        let Some(all) = joined(slot.frames.take(), x)? else { return Ok(None) };
        let count = all.dim(FRAMES)?;
        let used = count / size * size;
        if used < count {
            slot.frames = Some(all.narrow(FRAMES, used, count - used)?.force_contiguous()?);
        }
        if used == 0 { Ok(None) } else { Ok(Some(all.narrow(FRAMES, 0, used)?)) }
    }

    /// Holds `x` back until its partner on the other way round (a residual) has come: takes `x` in, gives the oldest `count` frames out.
    pub fn delay(&mut self, x: Option<&Tensor>, count: usize) -> Result<Option<Tensor>> {
        let slot = self.slot();
        let Some(held) = joined(slot.frames.take(), x)? else { return Ok(None) };
        let rest = held.dim(FRAMES)? - count;
        if rest > 0 {
            slot.frames = Some(held.narrow(FRAMES, count, rest)?.force_contiguous()?);
        }
        if count > 0 { Ok(Some(held.narrow(FRAMES, 0, count)?)) } else { Ok(None) }
    }

    /// Drops the clip's first `count` frames, which come in one group with more.
    pub fn drop_first(&mut self, x: Option<Tensor>, count: usize) -> Result<Option<Tensor>> {
        let slot = self.slot();
        match x {
            Some(x) if !slot.started => {
                slot.started = true;
                Ok(Some(x.narrow(FRAMES, count, x.dim(FRAMES)? - count)?))
            }
            x => Ok(x),
        }
    }

    /// What `make` gave when it first gave something.
    pub fn once(&mut self, make: impl FnOnce() -> Result<Option<Tensor>>) -> Result<Option<Tensor>> {
        let slot = self.slot();
        if slot.frames.is_none() {
            slot.frames = make()?;
        }
        Ok(slot.frames.clone())
    }

    fn slot(&mut self) -> &mut Slot {
        if self.cursor == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.cursor += 1;
        &mut self.slots[self.cursor - 1]
    }
}

fn joined(held: Option<Tensor>, x: Option<&Tensor>) -> Result<Option<Tensor>> {
    match (held, x) {
        (Some(held), Some(x)) => Ok(Some(Tensor::cat(&[&held, x], FRAMES)?)),
        (held, x) => Ok(held.or(x.cloned())),
    }
}

/// The last `count` frames, copied.
fn latest(parts: &[Tensor], mut count: usize) -> Result<Tensor> {
    let mut kept = vec![];
    for part in parts.iter().rev() {
        let (frames, some) = (part.dim(FRAMES)?, count.min(part.dim(FRAMES)?));
        if some > 0 {
            kept.insert(0, part.narrow(FRAMES, frames - some, some)?);
        }
        count -= some;
    }
    if let [only] = kept.as_slice() { only.force_contiguous() } else { Tensor::cat(&kept, FRAMES) }
}

fn repeat(frame: &Tensor, count: usize) -> Result<Tensor> {
    let mut shape = frame.dims().to_vec();
    shape[FRAMES] = count;
    frame.broadcast_as(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn frames(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn windows_repeat_the_ends_and_carry_the_middle() -> Result<()> {
        let clip = Tensor::arange(0f32, 5., &Device::Cpu)?.reshape((1, 5, 1, 1, 1))?;
        let mut stream = Stream::new();
        let mut seen = vec![];
        for (start, count) in [(0, 1), (1, 3), (4, 1)] {
            stream.next_group(start == 4);
            if let Some(window) = stream.window(Some(&clip.narrow(FRAMES, start, count)?), 1, 1)? {
                let window = frames(&Tensor::cat(&window, FRAMES)?);
                seen.extend(window.windows(3).map(|w| w.to_vec()));
            }
        }
        assert_eq!(seen, [[0., 0., 1.], [0., 1., 2.], [1., 2., 3.], [2., 3., 4.], [3., 4., 4.]]);
        Ok(())
    }
}
