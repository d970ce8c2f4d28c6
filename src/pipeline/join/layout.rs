//! Where everything goes in the made clip of a join: context, what is new, context. Lengths alone, from the footage's headers.

use crate::job::geometry::{Extent, Geometry};
use crate::job::windows::Direction;
use crate::planning::forecast::HeldSpan;
use crate::planning::scenes::Shot;
use std::ops::Range;

/// Latent frames of context at most: more costs time and tells the model little that is new.
const MOST_CONTEXT: usize = 9;

/// What has to be known to lay a join out.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    pub geometry: Geometry,
    /// Frames that the model makes at once.
    pub window: usize,
    /// Frames of footage before and after the made part.
    pub before: Option<usize>,
    pub after: Option<usize>,
    /// Frames of context from each, where they were asked for.
    pub context: Option<usize>,
    /// The model goes on from one frame only.
    pub single: bool,
    /// New frames, where they were asked for.
    pub wanted: Option<usize>,
}

/// The made clip of a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Frames of context before and after what is new.
    pub before: Option<usize>,
    pub after: Option<usize>,
    /// New frames that were asked for; between two clips there may be more.
    pub wanted: usize,
    /// Frames that are new and shown.
    pub new: Range<usize>,
    /// All frames.
    pub frames: usize,
}

impl Layout {
    /// Lays a join out, by default with as much context as helps and fits the windows that the clip is made in.
    pub fn new(given: &Given) -> Self {
        let latents = given.latents(given.window);
        let sides = usize::from(given.before.is_some()) + usize::from(given.after.is_some());
        if given.single {
            return Self::with(given, 1);
        }
        if let Some(frames) = given.context {
            return Self::with(given, given.latents(frames));
        }
        // half the window goes to what is new
        let most = (latents.div_ceil(2) / sides.max(1)).clamp(2, MOST_CONTEXT);
        let mut layouts = (1..=most).rev().map(|context| Self::with(given, context));
        layouts.find(|layout| layout.fits_windows(given)).unwrap_or_else(|| Self::with(given, 1))
    }

    /// - `context`: latent frames of each side at most.
    fn with(given: &Given, context: usize) -> Self {
        let time = given.geometry.time;
        // 1 + k `time` frames, as many as there are
        let of = |frames: usize| ((frames.max(1) - 1) / time).min(context - 1) * time + 1;
        let (before, after) = (given.before.map(of), given.after.map(of));
        let wanted = given.wanted.unwrap_or_else(|| time * (given.latents(given.window) / 2).max(1));
        let lead = before.unwrap_or(0);
        let end = lead + wanted;
        match after {
            None => Self { before, after, wanted, new: lead..end, frames: end },
            Some(tail) => {
                let at = end.next_multiple_of(time);
                // without footage before, frames too many fall off the front; between two clips none may
                let new = if before.is_some() { lead..at } else { at - wanted..at };
                Self { before, after, wanted, new, frames: at + tail }
            }
        }
    }

    /// Where the context of each side is held.
    pub fn places(&self) -> Vec<HeldSpan> {
        let place = |frame| move |count| HeldSpan { frame, count, bytes: None };
        self.before.map(place(0)).into_iter().chain(self.after.map(place(self.new.end))).collect()
    }

    /// Which way a clip longer than a window grows: from the footage.
    pub fn direction(&self) -> Direction {
        if self.before.is_some() { Direction::Forward } else { Direction::Back }
    }

    fn fits_windows(&self, given: &Given) -> bool {
        let Given { geometry, window, .. } = *given;
        let legal = geometry.legal(Extent { width: geometry.space, height: geometry.space, frames: self.frames });
        let mut shot = Shot { first_frame: 0, frames: self.frames, grid: geometry.grid(legal), windows: vec![] };
        shot.cut(window, &HeldSpan::spans(&self.places()), geometry, self.direction()).is_ok()
    }
}

impl Given {
    /// Latent frames that so many frames fill.
    fn latents(&self, frames: usize) -> usize {
        (frames.max(1) - 1) / self.geometry.time + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(window: usize, before: Option<usize>, after: Option<usize>, wanted: usize) -> Given {
        let geometry = Geometry { time: 4, space: 16 };
        Given { geometry, window, before, after, context: None, single: false, wanted: Some(wanted) }
    }

    /// Whatever the lengths, the default context lies within the windows: there is nothing for a user to mend.
    #[test]
    fn the_default_context_fits_every_window() {
        for window in [2, 5, 9, 13, 17, 25, 33, 97] {
            for (before, after) in [(1, 0), (40, 0), (0, 1), (0, 3), (0, 9), (0, 40), (1, 1), (40, 40), (5, 40)] {
                let of = |frames| Some(frames).filter(|&frames| frames > 0);
                for wanted in 1..=2 * window + 5 {
                    let given = given(window, of(before), of(after), wanted);
                    let layout = Layout::new(&given);
                    assert!(layout.fits_windows(&given), "{given:?}\n{layout:?}");
                    let new = layout.new.len();
                    let most = if before > 0 && after > 0 { wanted + 3 } else { wanted };
                    assert!((wanted..=most).contains(&new), "{given:?}\n{layout:?}");
                }
            }
        }
    }

    #[test]
    fn half_of_a_window_is_context() {
        let layout = Layout::new(&given(17, Some(40), None, 8));
        assert_eq!((layout.before, layout.new, layout.frames), (Some(9), 9..17, 17));
        // toward what came before, 9 to 12 frames did not fit their windows
        for wanted in 8..=40 {
            assert_eq!(Layout::new(&given(17, None, Some(40), wanted)).after, Some(9), "{wanted}");
        }
        let asked = Given { context: Some(33), ..given(17, Some(40), None, 8) };
        assert_eq!(Layout::new(&asked).before, Some(33));
        let single = Given { single: true, ..given(17, Some(40), None, 8) };
        assert_eq!(Layout::new(&single).before, Some(1));
    }
}
