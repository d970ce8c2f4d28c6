//! Where tokens stand in space and time.

use crate::job::geometry::{Geometry, Grid};

/// Token positions without the first frame's correction, as `text` checkpoints were trained: (seconds, rows, columns).
/// - Source: diffusers `models/transformers/transformer_ltx.py`, `_prepare_video_coords`, at 58eb52c.
pub fn plain(geometry: &Geometry, grid: Grid, fps: f64) -> Vec<[f32; 3]> {
    let step = (geometry.time as f64 / fps) as f32;
    positions(geometry, grid, |f| f as f32 * step)
}

/// Token positions with the first latent frame standing for one frame: (seconds, rows, columns).
/// - `first`: pixel frame that the grid begins at.
/// - Source: diffusers `pipelines/ltx/pipeline_ltx_condition.py`, `_scale_video_ids`, at 58eb52c.
pub fn causal(geometry: &Geometry, grid: Grid, fps: f64, first: usize) -> Vec<[f32; 3]> {
    let step = (1.0 / fps) as f32;
    positions(geometry, grid, |f| ((f * geometry.time + 1).saturating_sub(geometry.time) + first) as f32 * step)
}

/// In token order: columns fastest, then rows, then frames.
fn positions(geometry: &Geometry, grid: Grid, seconds: impl Fn(usize) -> f32) -> Vec<[f32; 3]> {
    let mut all = Vec::with_capacity(grid.tokens());
    for f in 0..grid.frames {
        for y in 0..grid.height {
            for x in 0..grid.width {
                all.push([seconds(f), (y * geometry.space) as f32, (x * geometry.space) as f32]);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const LTX: Geometry = Geometry { time: 8, space: 32 };

    #[test]
    fn the_first_latent_frame_is_one_frame() {
        let grid = Grid { frames: 3, height: 1, width: 1 };
        let seconds = |p: Vec<[f32; 3]>| p.iter().map(|p| p[0]).collect::<Vec<_>>();
        assert_eq!(seconds(causal(&LTX, grid, 1.0, 0)), [0.0, 1.0, 9.0]);
        assert_eq!(seconds(causal(&LTX, grid, 1.0, 80)), [80.0, 81.0, 89.0]);
        assert_eq!(seconds(plain(&LTX, grid, 1.0)), [0.0, 8.0, 16.0]);
    }
}
