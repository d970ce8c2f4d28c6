//! Clips longer than a model makes at once: overlapping windows over the latent frames, each begun from the latents that the
//! one before ended with. All latents are made before any is decoded, so there is no seam in the pixels: a minute of latents
//! is small, and the decoder reads them as one clip.

use anyhow::Result;
use candle_core::Tensor;

/// Some latent frames of a long clip, made at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The scene's latent frame that it begins with.
    pub latent_start: usize,
    /// Latent frames in it.
    pub latent_frames: usize,
    /// Of these, how many are carried over from the window made before: the first ones, or, going back, the last ones.
    pub latent_carried: usize,
}

/// Which way a long clip grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    #[default]
    Forward,
    /// From its end to its start: toward what came before a clip.
    Back,
}

impl Window {
    /// Latent frames that it adds.
    pub fn added(&self) -> usize {
        self.latent_frames - self.latent_carried
    }

    /// The latent frames that it adds, counted in the clip.
    pub fn fresh(&self, direction: Direction) -> std::ops::Range<usize> {
        let first = self.latent_start + if direction == Direction::Forward { self.latent_carried } else { 0 };
        first..first + self.added()
    }
}

/// Cuts a clip into windows, in the order in which they are made.
/// - `total`: latent frames of the clip. `size`: of a window, at least 2. `last`: the window made last adds at least so
///   many, if it can.
pub fn plan(total: usize, size: usize, last: usize, direction: Direction) -> Vec<Window> {
    let mut windows = vec![];
    let mut made = 0;
    while made < total {
        let room = if made == 0 { size } else { size - overlap(size) };
        let mut end = (made + room).min(total);
        if end < total && total - end < last && made + last < total {
            end = total - last;
        }
        // a short last window carries more instead, so that the model sees its usual length
        let start = if made == 0 { 0 } else { end.saturating_sub(size) };
        windows.push(Window { latent_start: start, latent_frames: end - start, latent_carried: made - start });
        made = end;
    }
    if direction == Direction::Back {
        windows.iter_mut().for_each(|window| window.latent_start = total - window.latent_start - window.latent_frames);
    }
    windows
}

/// A quarter of the window carries motion; less than two frames carry none.
fn overlap(size: usize) -> usize {
    (size / 4).max(2).min(size - 1)
}

/// Mean and deviation of each channel.
#[derive(Clone)]
pub struct ChannelStatistics {
    /// (1, 1, c), both.
    pub mean: Tensor,
    pub std: Tensor,
}

impl ChannelStatistics {
    /// - `latents`: (1, tokens, c).
    pub fn of(latents: &Tensor) -> Result<Self> {
        let mean = latents.mean_keepdim(1)?;
        let std = (latents.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)? + 1e-12)?.sqrt()?;
        Ok(Self { mean, std })
    }

    /// Brings latents to these statistics: (1, tokens, c) -> (1, tokens, c).
    pub fn impose(&self, latents: &Tensor) -> Result<Tensor> {
        let own = Self::of(latents)?;
        let even = latents.broadcast_sub(&own.mean)?.broadcast_div(&own.std)?;
        Ok(even.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_made_once() {
        for direction in [Direction::Forward, Direction::Back] {
            for (total, size) in [(1, 5), (5, 5), (3, 5), (61, 5), (200, 33), (9, 2)] {
                let mut made = vec![0; total];
                for window in plan(total, size, 2, direction) {
                    assert!(window.latent_frames <= size && window.latent_start + window.latent_frames <= total);
                    made[window.fresh(direction)].iter_mut().for_each(|n| *n += 1);
                }
                assert!(made.iter().all(|&n| n == 1), "{total} {size} {direction:?}");
            }
        }
    }

    #[test]
    fn the_last_window_has_room_for_what_it_leads_to() {
        for total in 5..60 {
            let windows = plan(total, 5, 2, Direction::Forward);
            assert!(windows.last().is_some_and(|window| window.added() >= 2), "{total}");
        }
    }
}
