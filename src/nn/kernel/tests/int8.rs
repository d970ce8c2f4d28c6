//! Int8 dot products against the plain sum over what eight bits keep of the activations.

use super::super::blocks::QuantType;
use super::super::int8::{self, Activations, Dot, KINDS, Panels, Quantised};
use super::super::memory::filled;
use super::super::product::RowEpilogue;
use super::{close, values};
use half::{bf16, f16};

/// Whole numbers are added up exactly, so what is left of it are the scales: of products with quantised activations, relative
/// to the sum of magnitudes.
const SCALED: f64 = 1e-6;

/// The values of a row that eight bits keep, in groups with a scale each.
pub fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| -> Vec<f64> {
        let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        x.iter().map(|x| (x * inverse).round_ties_even() as f64 * scale as f64).collect()
    };
    x.chunks(int8::GROUP * int8::BLOCK).flat_map(block).collect()
}

/// A value that is no number spoils its row, as in any other product, and no other row.
#[test]
fn quantised_products_of_no_numbers() {
    for dot in Dot::all() {
        for kind in KINDS {
            for (lost, value) in [(3, f32::NAN), (29, f32::NAN), (40, f32::INFINITY)] {
                let (k, n) = (256, 5);
                let mut x = values(2 * k, 1);
                x[lost] = value;
                let (bytes, _) = quantised(kind, n, k);
                let (x, weights) =
                    (Activations { x: &x, stride: k, rows: 2, k }, Quantised { kind, bytes: &bytes, prepacked: false });
                let run = |y: &mut [_]| int8::product_on(dot, &x, weights, n, RowEpilogue::default(), y, n);
                // SAFETY: a product writes all of its result.
                let y: Vec<f32> = unsafe { filled(2 * n, run) };
                assert!(y[..n].iter().all(|y| !y.is_finite()), "{kind:?} by {dot:?}: {y:?}");
                assert!(y[n..].iter().all(|y| y.is_finite()), "{kind:?} by {dot:?}: {y:?}");
            }
        }
    }
}

/// The largest products that there are, all of one sign, add up exactly: no sum on the way is cut off.
#[test]
fn quantised_products_of_the_largest_numbers() {
    for dot in Dot::all() {
        for (kind, q) in [(QuantType::Q8_0, 0x80), (QuantType::Q8_0, 0x7f), (QuantType::Q4K, 0xff)] {
            let (m, k, n) = (2, 512, 19);
            let mut bytes = vec![q; kind.size(n * k)];
            for block in bytes.chunks_mut(kind.bytes()) {
                block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
                if kind == QuantType::Q4K {
                    block[2..4].copy_from_slice(&f16::ONE.to_le_bytes());
                }
            }
            let mut wide = vec![0f32; n * k];
            kind.decode(&bytes, 0, &mut wide);
            let x = [vec![127f32; k], vec![-127f32; k]].concat();
            let (a, weights) =
                (Activations { x: &x, stride: k, rows: m, k }, Quantised { kind, bytes: &bytes, prepacked: false });
            let run = |y: &mut [_]| int8::product_on(dot, &a, weights, n, RowEpilogue::default(), y, n);
            // SAFETY: a product writes all of its result.
            let y: Vec<f32> = unsafe { filled(m * n, run) };
            for (at, y) in y.iter().enumerate() {
                let (row, column) = (at / n, at % n);
                let want: f64 = (0..k).map(|p| x[row * k + p] as f64 * wide[column * k + p] as f64).sum();
                close(&format!("{kind:?} of {q} by {dot:?}"), *y, want, SCALED * want.abs());
            }
        }
    }
}

/// Some rows of (k) in ggml's form, and what they stand for.
fn quantised(kind: QuantType, n: usize, k: usize) -> (Vec<u8>, Vec<f64>) {
    let (count, size) = (kind.values(), kind.bytes());
    let mut bits = values(n * k / count * size, 11).into_iter().map(|x| (x * 1e4) as i32 as u8);
    let (mut bytes, mut wide) = (vec![], vec![]);
    for i in 0..n * k / count {
        let mut block: Vec<u8> = bits.by_ref().take(size).collect();
        let f = |i: usize| f16::from_f32(0.003 + 0.001 * (i % 7) as f32);
        block[..2].copy_from_slice(&f(i).to_le_bytes());
        match kind {
            QuantType::Q8_0 => wide.extend(block[2..].iter().map(|&q| q as i8 as f64 * f(i).to_f64())),
            _ => {
                block[2..4].copy_from_slice(&f(i + 3).to_le_bytes());
                let s = |j: usize| block[4 + j];
                for j in 0..8 {
                    let (scale, least) = match j < 4 {
                        true => (s(j) & 63, s(j + 4) & 63),
                        false => (s(j + 4) & 15 | s(j - 4) >> 6 << 4, s(j + 4) >> 4 | s(j) >> 6 << 4),
                    };
                    let (scale, least) = (scale as f64 * f(i).to_f64(), least as f64 * f(i + 3).to_f64());
                    let four = |q: u8| (if j % 2 == 0 { q & 15 } else { q >> 4 }) as f64 * scale - least;
                    wide.extend(block[16 + j / 2 * 32..][..32].iter().map(|&q| four(q)));
                }
            }
        }
        bytes.extend(block);
    }
    (bytes, wide)
}

#[test]
fn quantised_products() {
    assert_eq!(int8::fits(QuantType::Q8_0, 32), Dot::best().is_some()); // a CPU without multiplies in f32
    for (dot, threads) in Dot::all().into_iter().flat_map(|dot| [(dot, 1), (dot, 3)]) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // the last two end within a group of blocks, and only one kind's blocks divide them
        let shapes = [(1, 256, 1), (5, 512, 3), (13, 768, 37), (401, 256, 70), (29, 2048, 300), (6, 1280, 32)];
        for (m, k, n) in shapes.into_iter().chain([(7, 96, 33), (8, 1120, 35)]) {
            for kind in KINDS.into_iter().filter(|kind| k % kind.values() == 0) {
                let stride = k + m;
                let x = values(m * stride, 1);
                let half: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
                let (bytes, ws) = quantised(kind, n, k);
                let weights = Quantised { kind, bytes: &bytes, prepacked: false };
                let (bias, whole) = (values(n, 3), values(m * n, 5));
                let finish = RowEpilogue { bias: Some(&bias), residual: Some(&whole), ..RowEpilogue::default() };
                let row_stride = n + 3;
                let narrow_x = Activations { x: &half, stride, rows: m, k };
                let wide_x = Activations { x: &x, stride, rows: m, k };
                let product = |y: &mut [_], narrow: bool| match narrow {
                    true => int8::product_on(dot, &narrow_x, weights, n, finish, y, row_stride),
                    false => int8::product_on(dot, &wide_x, weights, n, finish, y, row_stride),
                };
                for narrow in [false, true] {
                    // SAFETY: a product writes all of its result.
                    let y: Vec<f32> = pool.install(|| unsafe { filled(m * row_stride, |y| product(y, narrow)) });
                    for row in 0..m {
                        let line: Vec<f32> = match narrow {
                            true => half[row * stride..][..k].iter().map(|x| x.to_f32()).collect(),
                            false => x[row * stride..][..k].to_vec(),
                        };
                        let xs = rounded(&line);
                        for column in 0..n {
                            let terms = xs.iter().zip(&ws[column * k..]).map(|(x, w)| x * w);
                            let size: f64 = terms.clone().map(f64::abs).sum::<f64>() + 1.0;
                            let want = terms.sum::<f64>() + bias[column] as f64 + whole[row * n + column] as f64;
                            let what = format!("{kind:?} by {dot:?}, {m}x{k}x{n} on {threads} threads");
                            close(&what, y[row * row_stride + column], want, SCALED * (size + want.abs()));
                        }
                        assert!(y[row * row_stride + n..(row + 1) * row_stride].iter().all(|&pad| pad == 0.0));
                    }
                }
            }
        }
    }
}

/// Rows that were repacked are the same rows, and multiply to the same bytes.
#[test]
fn rows_laid_out_in_panels() {
    for (m, k, n) in [(1, 32, 32), (5, 768, 96), (401, 2048, 64), (13, 1120, 320)] {
        let (bytes, _) = quantised(QuantType::Q8_0, n, k);
        let weights = Quantised { kind: QuantType::Q8_0, bytes: &bytes, prepacked: false };
        let panels = Panels::of(weights, n, k / int8::BLOCK);
        assert_eq!(panels.is_some(), Dot::best() == Some(Dot::Avx512)); // other kernels read rows as they lie
        let Some(panels) = panels else { continue };
        assert!(panels.rows(k / int8::BLOCK) == bytes, "{n} rows of {k}");
        assert_eq!(panels.weights().bytes.len(), bytes.len());
        let x = values(m * k, 1);
        let x = Activations { x: &x, stride: k, rows: m, k };
        let product = |weights| -> Vec<f32> {
            // SAFETY: a product writes all of its result.
            unsafe { filled(m * n, |y| int8::product(&x, weights, n, RowEpilogue::default(), y, n)) }
        };
        assert!(product(weights) == product(panels.weights()), "{m}x{k}x{n}");
    }
    // what does not fill panels stays as it is
    let (bytes, _) = quantised(QuantType::Q8_0, 33, 64);
    assert!(Panels::of(Quantised { kind: QuantType::Q8_0, bytes: &bytes, prepacked: false }, 33, 2).is_none());
}
