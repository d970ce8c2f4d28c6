//! Numbers -> ggml's blocks, as `--quantize` wants them.

use super::blocks::{QuantType, six_bits};
use super::micro::Kernel;
use super::pack::Rows;
use super::{Job, MatmulType, dispatch};
use half::f16;
use rayon::prelude::*;

/// Blocks that one task makes.
const TASK_BLOCKS: usize = 256;

/// Makes blocks of numbers, which are whole blocks.
/// - `kind`: Q8_0 or Q4_K. `out`: `kind.size(rows.count())` bytes.
pub fn encode(kind: QuantType, rows: Rows, out: &mut [u8]) {
    assert!(matches!(kind, QuantType::Q8_0 | QuantType::Q4K), "no blocks of {} are made", kind.name());
    let values = kind.values();
    assert!(rows.count().is_multiple_of(values) && out.len() == kind.size(rows.count()));
    out.par_chunks_mut(TASK_BLOCKS * kind.bytes()).enumerate().for_each(|(task, out)| {
        dispatch(MatmulType::F32, Task { kind, rows, first: task * TASK_BLOCKS * values, out });
    });
}

struct Task<'a> {
    kind: QuantType,
    rows: Rows<'a>,
    first: usize,
    out: &'a mut [u8],
}

impl Job for Task<'_> {
    type Done = ();

    fn run<K: Kernel>(self) {
        // SAFETY: K was chosen for this CPU.
        unsafe {
            K::vectorised(
                #[inline(always)]
                || {
                    let mut x = [0f32; 256];
                    let values = self.kind.values();
                    for (i, out) in self.out.chunks_mut(self.kind.bytes()).enumerate() {
                        let x = &mut x[..values];
                        self.rows.copy(self.first + i * values, x);
                        match self.kind {
                            QuantType::Q8_0 => q8_0(x, out),
                            _ => q4k(x, out),
                        }
                    }
                },
            )
        }
    }
}

/// Adding it rounds a number below 2^22 to an integer.
const ROUND: f32 = super::simd::ROUND;

/// The nearest half-precision number, at most the largest.
fn half(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}

/// The sum of lanes, by halves: one after the other would wait for each other.
#[inline(always)]
fn sum(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// A block with a number that is none decodes to numbers that are none: damage stays visible.
fn broken(x: &[f32]) -> bool {
    !x.iter().map(|x| x * 0.0).sum::<f32>().is_finite()
}

/// Scales of a block of Q8_0 that are tried, from the one that just reaches its largest value: which one the other values happen
/// to lie near is chance, and the best of so many takes 1.2 dB off the error.
const SCALES: usize = 32;
const FINEST: f32 = 0.98;
const SCALE_STEP: f32 = 0.004;

#[inline(always)]
fn q8_0(x: &[f32], out: &mut [u8]) {
    let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
    let mut best = most / 127.0;
    let mut least = f32::MAX;
    for i in 0..SCALES {
        let scale = most / 127.0 * (FINEST + SCALE_STEP * i as f32);
        let steps = if scale > 0.0 { scale.recip() } else { 0.0 };
        let (mut qq, mut qx) = ([0f32; 16], [0f32; 16]);
        for x in x.chunks_exact(16) {
            for j in 0..16 {
                let q = (x[j] * steps).clamp(-127.0, 127.0) + ROUND - ROUND;
                qq[j] += q * q;
                qx[j] += q * x[j];
            }
        }
        let (qq, qx) = (sum(qq), sum(qx));
        // the error is what this takes off the squares of the values, with the scale that suits these quants best
        if qq > 0.0 && -qx * qx / qq < least {
            (least, best) = (-qx * qx / qq, qx / qq);
        }
    }
    // values are counted in steps of the scale as it is kept, not as it was before it was rounded
    let scale = if broken(x) { f16::NAN } else { half(best) };
    let step = scale.to_f32();
    let steps = if step > 0.0 { step.recip() } else { 0.0 };
    out[..2].copy_from_slice(&scale.to_le_bytes());
    for (q, x) in out[2..].iter_mut().zip(x) {
        let rounded = (x * steps).clamp(-127.0, 127.0) + ROUND - ROUND;
        *q = rounded as i32 as u8;
    }
}

/// Ways to lay sixteen levels over the values of a group that are tried, from coarser to finer.
const TRIES: usize = 24;
const WIDEST: f32 = -1.5;
const TRY_STEP: f32 = 0.125;

/// Scale and minimum of a group: x is about scale q - minimum, with q in 0..=15; those of least squared error found.
/// - Source of the search: ggml `src/ggml-quants.c`, `make_qkx2_quants`, which weighs by size; here all values weigh the same.
#[inline(always)]
fn levels(x: &[f32]) -> (f32, f32) {
    let low = x.iter().fold(0f32, |a, &b| a.min(b));
    let high = x.iter().fold(f32::MIN, |a, &b| a.max(b));
    if high <= low {
        return (0.0, -low);
    }
    let (mut sum_x, mut sum_xx) = (0f32, 0f32);
    for x in x {
        sum_x += x;
        sum_xx += x * x;
    }
    let n = x.len() as f32;
    let mut best = ((high - low) / 15.0, -low);
    let mut least = f32::MAX;
    for i in 0..TRIES {
        let steps = (15.0 + WIDEST + TRY_STEP * i as f32) / (high - low);
        // sums in lanes, so that they are vectorised
        let (mut q1, mut qq, mut qx) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for x in x.chunks_exact(16) {
            for j in 0..16 {
                let q = ((x[j] - low) * steps).clamp(0.0, 15.0) + ROUND - ROUND;
                q1[j] += q;
                qq[j] += q * q;
                qx[j] += q * x[j];
            }
        }
        let (q1, qq, qx) = (sum(q1), sum(qq), sum(qx));
        let determinant = n * qq - q1 * q1;
        if determinant <= 0.0 {
            continue;
        }
        let (mut scale, mut shift) = ((n * qx - sum_x * q1) / determinant, (qq * sum_x - q1 * qx) / determinant);
        if shift > 0.0 {
            (scale, shift) = (qx / qq, 0.0);
        }
        let error = scale * (scale * qq + 2.0 * (shift * q1 - qx)) + shift * (n * shift - 2.0 * sum_x) + sum_xx;
        if error < least && scale > 0.0 {
            (least, best) = (error, (scale, -shift));
        }
    }
    best
}

#[inline(always)]
fn q4k(x: &[f32], out: &mut [u8]) {
    if broken(x) {
        out.fill(0);
        out[..2].copy_from_slice(&f16::NAN.to_le_bytes());
        return;
    }
    let mut found = [(0f32, 0f32); 8];
    for (found, x) in found.iter_mut().zip(x.chunks_exact(32)) {
        *found = levels(x);
    }
    let most = |part: fn(&(f32, f32)) -> f32| found.iter().map(part).fold(0f32, f32::max);
    let (d, min) = (half(most(|f| f.0) / 63.0), half(most(|f| f.1) / 63.0));
    out[..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&min.to_le_bytes());
    let (d, min) = (d.to_f32(), min.to_f32());
    let six = |x: f32, unit: f32| if unit > 0.0 { (x / unit + ROUND - ROUND).min(63.0) as u8 } else { 0 };
    let mut scales = [0u8; 12];
    for (group, (scale, shift)) in found.iter().enumerate() {
        let (scale, shift) = (six(*scale, d), six(*shift, min));
        if group < 4 {
            scales[group] |= scale;
            scales[group + 4] |= shift;
        } else {
            scales[group + 4] |= scale & 15 | shift << 4;
            scales[group - 4] |= scale >> 4 << 6;
            scales[group] |= shift >> 4 << 6;
        }
    }
    out[4..16].copy_from_slice(&scales);
    let quants = &mut out[16..];
    let (scales, shifts) = six_bits(&scales);
    for (group, x) in x.chunks_exact(32).enumerate() {
        let (scale, shift) = (d * scales[group] as f32, min * shifts[group] as f32);
        let steps = if scale > 0.0 { scale.recip() } else { 0.0 };
        let quants = &mut quants[group / 2 * 32..][..32];
        for (q, x) in quants.iter_mut().zip(x) {
            let level = (((x + shift) * steps).clamp(0.0, 15.0) + ROUND - ROUND) as i32 as u8;
            *q = if group % 2 == 0 { level } else { *q | level << 4 };
        }
    }
}
