//! Convolutions in pairs against the plain sum, over numbers whose sums are exact in every type: nothing may be off at all.

use super::super::memory::filled;
use super::super::micro::Kernel;
use super::super::pack::Rows;
use super::super::product::RowEpilogue;
use super::super::rows::RowNormAct;
use super::super::winograd::{Panels, convolve};
use super::super::{Job, row_stride};
use super::{everywhere, values};
use half::bf16;

/// Whole numbers of at most `most`, times `unit`.
fn whole(count: usize, seed: u64, most: f32, unit: f32) -> Vec<f32> {
    values(count, seed).into_iter().map(|x| (x * most / 2.0).round().clamp(-most, most) * unit).collect()
}

/// Frames, height, width and channels of the picture, and channels of the result.
fn compare<K: Kernel>(what: &str, [frames, h, w, c, n]: [usize; 5]) {
    // three of the one and four of the other, halved, are whole numbers of seven bits at most
    let (x, weights) = (whole(frames * h * w * c, 1, 31.0, 1.0), whole(n * c * 27, 2, 7.0, 2.0));
    let half: Vec<bf16> = weights.iter().map(|w| bf16::from_f32(*w)).collect();
    let panels = Panels::<K::Elem>::new::<K>(Rows::Bf16(&half), n, c);
    assert!(panels.kernel::<K>() == Panels::<K::Elem>::new::<K>(Rows::F32(&weights), n, c).kernel::<K>());
    let back = panels.kernel::<K>();
    for (at, weight) in weights.iter().enumerate() {
        let (output, input, tap) = (at / 27 / c, at / 27 % c, at % 27);
        assert_eq!(back[(output * 27 + tap) * c + input], *weight, "{what}: weight {at}");
    }
    let scale = whole(c, 3, 1.0, 1.0);
    let (bias, residual) = (whole(n, 4, 9.0, 1.0), whole((frames - 2) * h * w * n, 5, 9.0, 1.0));
    let finish = RowEpilogue { bias: Some(&bias), residual: Some(&residual), ..RowEpilogue::default() };
    // some pixels are bent, as their place says
    let how =
        |pixel: usize| RowNormAct { scale: (pixel.is_multiple_of(3)).then_some(&scale[..]), ..RowNormAct::default() };
    let parts: Vec<&[f32]> = x.chunks(h * w * c).collect();
    let run = |y: &mut [_]| convolve::<K>(&parts, [h, w], &how, &panels, finish, y);
    // SAFETY: a convolution writes all of its result.
    let y: Vec<f32> = unsafe { filled(residual.len(), run) };
    // some of them, of many
    for (at, got) in y.iter().enumerate().step_by(1 + y.len() / 3000) {
        let (f, i, j, output) = (at / n / w / h, at / n / w % h, at / n % w, at % n);
        let mut want = bias[output] as f64 + residual[at] as f64;
        for tap in 0..27 {
            let (t, r, s) = (tap / 9, tap / 3 % 3, tap % 3);
            let (row, column) = ((i + r).wrapping_sub(1), (j + s).wrapping_sub(1));
            if row >= h || column >= w {
                continue;
            }
            let pixel = ((f + t) * h + row) * w + column;
            for input in 0..c {
                let factor = if pixel.is_multiple_of(3) { scale[input] } else { 1.0 };
                want += (x[pixel * c + input] * factor) as f64 * weights[(output * c + input) * 27 + tap] as f64;
            }
        }
        assert_eq!(*got as f64, want, "{what}: {frames} x {h} x {w} x {c} to {n}, value {at}");
    }
}

struct Pairs(String);

impl Job for Pairs {
    type Done = ();

    fn run<K: Kernel>(self) {
        // one pixel; odd widths, heights and channels; more rows than a tile; several tasks; rows that are kept
        // apart; pieces; activations that are too many to stay near
        let apart = 2048 / size_of::<K::Elem>();
        assert_ne!(row_stride(apart, size_of::<K::Elem>()), apart);
        for size in [
            [3, 1, 1, 1, 1],
            [5, 4, 7, 6, 9],
            [3, 13, 2, 33, 37],
            [4, 30, 13, 10, 300],
            [3, 2, 3, apart, 5],
            [3, 5, 4, 400, 33],
            [3, 24, 12, 290, 70],
        ] {
            compare::<K>(&self.0, size);
        }
    }
}

#[test]
fn convolutions_in_pairs() {
    everywhere(Pairs);
}
