//! Pixels and latents: the only arithmetic between the two.

use serde::{Deserialize, Serialize};

/// What one latent stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Frames a latent frame, after the first, which stands for one.
    pub time: usize,
    /// Pixels along each side.
    pub space: usize,
}

/// Width, height and frames of a clip, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub width: usize,
    pub height: usize,
    pub frames: usize,
}

/// A clip's latent grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub frames: usize,
    pub height: usize,
    pub width: usize,
}

impl Grid {
    /// Latent tokens in the clip.
    pub fn tokens(&self) -> usize {
        self.frames * self.height * self.width
    }
}

impl Geometry {
    /// The smallest clip that the model can make and that holds `asked`: sides in whole latents, 1 + k `time` frames.
    pub fn legal(&self, asked: Extent) -> Extent {
        Extent {
            width: asked.width.next_multiple_of(self.space),
            height: asked.height.next_multiple_of(self.space),
            frames: (asked.frames - 1).next_multiple_of(self.time) + 1,
        }
    }

    /// The first of two passes: sides in whole latents, rounded down, so a small one may come to nothing.
    /// - `legal`: the whole. `factor`: sides of the first pass, of the whole.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `LTXMultiScalePipeline.__call__`, at 5260738.
    pub fn shrunk(&self, legal: Extent, factor: f64) -> Extent {
        let side = |side: usize| (side as f64 * factor) as usize / self.space * self.space;
        Extent { width: side(legal.width), height: side(legal.height), ..legal }
    }

    /// The latent grid of a legal clip.
    pub fn grid(&self, legal: Extent) -> Grid {
        Grid {
            frames: (legal.frames - 1) / self.time + 1,
            height: legal.height / self.space,
            width: legal.width / self.space,
        }
    }

    /// The latent frame that a pixel frame lies in.
    pub fn latent_frame(&self, frame: usize) -> usize {
        frame.div_ceil(self.time)
    }

    /// Token positions without the first frame's correction, as `text` checkpoints were trained: (seconds, rows, columns).
    /// - Source: diffusers `models/transformers/transformer_ltx.py`, `_prepare_video_coords`, at 58eb52c.
    pub fn plain_positions(&self, grid: Grid, fps: f64) -> Vec<[f32; 3]> {
        let step = (self.time as f64 / fps) as f32;
        self.positions(grid, |f| f as f32 * step)
    }

    /// Token positions with the first latent frame standing for one frame: (seconds, rows, columns).
    /// - `first`: pixel frame that the grid begins at.
    /// - Source: diffusers `pipelines/ltx/pipeline_ltx_condition.py`, `_scale_video_ids`, at 58eb52c.
    pub fn causal_positions(&self, grid: Grid, fps: f64, first: usize) -> Vec<[f32; 3]> {
        let step = (1.0 / fps) as f32;
        self.positions(grid, |f| ((f * self.time + 1).saturating_sub(self.time) + first) as f32 * step)
    }

    /// In token order: columns fastest, then rows, then frames.
    fn positions(&self, grid: Grid, seconds: impl Fn(usize) -> f32) -> Vec<[f32; 3]> {
        let mut all = Vec::with_capacity(grid.tokens());
        for f in 0..grid.frames {
            for y in 0..grid.height {
                for x in 0..grid.width {
                    all.push([seconds(f), (y * self.space) as f32, (x * self.space) as f32]);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LTX: Geometry = Geometry { time: 8, space: 32 };

    #[test]
    fn legal_sizes_hold_what_was_asked() {
        let legal = |width, height, frames| {
            let l = LTX.legal(Extent { width, height, frames });
            (l.width, l.height, l.frames)
        };
        assert_eq!(legal(704, 480, 161), (704, 480, 161));
        assert_eq!(legal(720, 481, 12), (736, 512, 17));
        assert_eq!(legal(1, 1, 1), (32, 32, 1));
    }

    #[test]
    fn a_first_pass_is_rounded_down() {
        let shrunk = |width, height| LTX.shrunk(Extent { width, height, frames: 9 }, 0.6666666);
        assert_eq!(shrunk(1216, 704), Extent { width: 800, height: 448, frames: 9 });
        assert_eq!((shrunk(96, 64).width, shrunk(96, 32).height), (32, 0)); // two thirds of 96 are less than 64
    }

    #[test]
    fn the_first_latent_frame_is_one_frame() {
        let grid = Grid { frames: 3, height: 1, width: 1 };
        let seconds = |p: Vec<[f32; 3]>| p.iter().map(|p| p[0]).collect::<Vec<_>>();
        assert_eq!(seconds(LTX.causal_positions(grid, 1.0, 0)), [0.0, 1.0, 9.0]);
        assert_eq!(seconds(LTX.causal_positions(grid, 1.0, 80)), [80.0, 81.0, 89.0]);
        assert_eq!(seconds(LTX.plain_positions(grid, 1.0)), [0.0, 8.0, 16.0]);
    }
}
