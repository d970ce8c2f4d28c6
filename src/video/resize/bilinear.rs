//! Between the sizes of two passes: torch's bilinear interpolation, on values that are not rounded in between.

use rayon::prelude::*;

/// Where one output lies among the inputs: the two beside it, and the share of the second.
struct Place {
    near: [usize; 2],
    share: f32,
}

/// - Source: PyTorch `aten/src/ATen/native/UpSample.h`, `compute_source_index_and_lambda` without `align_corners`.
fn places(inputs: usize, outputs: usize) -> Vec<Place> {
    let scale = inputs as f32 / outputs as f32;
    let place = |i: usize| {
        let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (at as usize).min(inputs - 1);
        Place { near: [first, (first + 1).min(inputs - 1)], share: (at - first as f32).clamp(0.0, 1.0) }
    };
    (0..outputs).map(place).collect()
}

/// A picture of another size.
/// - `rgb`: rows of packed values, `from` (width, height). Returns the same for `to`.
pub fn bilinear(rgb: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    bilinear_of(rgb, from, to, |value| value)
}

/// As [`bilinear`], of values that become numbers one by one: no second copy of a large picture is made.
pub fn bilinear_of<T: Copy + Sync>(
    rgb: &[T],
    from: (usize, usize),
    to: (usize, usize),
    number: impl Fn(T) -> f32 + Sync,
) -> Vec<f32> {
    if from == to {
        return rgb.iter().map(|&value| number(value)).collect();
    }
    let (across, down) = (places(from.0, to.0), places(from.1, to.1));
    let mut out = vec![0f32; to.0 * to.1 * 3];
    out.par_chunks_mut((to.0 * 3).max(1)).zip(&down).for_each(|(out, y)| {
        let [above, below] = y.near.map(|row| &rgb[row * from.0 * 3..][..from.0 * 3]);
        for (out, x) in out.chunks_mut(3).zip(&across) {
            for (c, out) in out.iter_mut().enumerate() {
                let along = |row: &[T]| {
                    let [left, right] = x.near.map(|at| number(row[at * 3 + c]));
                    (1.0 - x.share) * left + x.share * right
                };
                *out = (1.0 - y.share) * along(above) + y.share * along(below);
            }
        }
    });
    out
}
