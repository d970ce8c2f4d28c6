//! Every format against candle's reading of it, what is made against what candle makes, and products against plain ones.

use super::*;
use crate::models::random;
use crate::nn::kernel::encode::encode;
use crate::nn::kernel::memory::filled;
use crate::nn::kernel::micro::Kernel;
use crate::nn::kernel::pack::Rows;
use crate::nn::kernel::product::{Operand, RowEpilogue, product};
use crate::nn::kernel::{Isa, Job, MatmulType, dispatch_on};
use crate::nn::matrix::ggml;
use crate::sampling::noise::Noise;
use candle_core::quantized::{QStorage, QTensor};
use candle_core::{Device, Tensor};
use std::borrow::Cow;

/// What candle reads out of a row of blocks.
fn candle_reads(kind: QuantType, bytes: &[u8]) -> Vec<f32> {
    let count = bytes.len() / kind.bytes() * kind.values();
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, ggml(kind)).unwrap();
    let all = QTensor::new(storage, (1, count)).unwrap();
    all.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_format_is_read_as_candle_reads_it() {
    for kind in QuantType::ALL {
        assert_eq!(kind.bytes(), ggml(kind).type_size(), "{}", kind.name());
        assert_eq!(kind.values(), ggml(kind).block_size(), "{}", kind.name());
        assert_eq!(QuantType::of_number(kind.number()), Some(kind));
        let count = 37 * 256;
        let bytes = random::blocks(kind, count);
        let want = candle_reads(kind, &bytes);
        assert!(want.iter().any(|x| *x != 0.0) && want.iter().all(|x| x.is_finite()));
        // all at once, from the middle of a group, less than a group, across blocks
        for (at, n) in [(0, count), (13, 500), (256 + 40, 7), (31, 2), (300, 300), (count - 1, 1)] {
            let mut got = vec![0f32; n];
            kind.decode(&bytes, at, &mut got);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want[at..at + n]), "{} from {at} on", kind.name());
        }
    }
}

#[test]
fn every_half_precision_number_is_read() {
    for bits in 0..=u16::MAX {
        let (got, want) = (half(&bits.to_le_bytes(), 0), half::f16::from_bits(bits).to_f32());
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:04x}: {got} for {want}");
    }
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum()
}

fn made(kind: QuantType, x: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; kind.size(x.len())];
    encode(kind, Rows::F32(x), &mut bytes);
    candle_reads(kind, &bytes)
}

#[test]
fn what_is_made_is_nearer_than_what_candle_makes() {
    let normal = Noise::new(3).normal(64 * 256);
    let cases: [(&str, Vec<f32>); 5] = [
        ("normal", normal.iter().map(|x| x * 0.02).collect()),
        ("off centre", normal.iter().map(|x| x * 0.01 + 0.03).collect()),
        ("below zero", normal.iter().map(|x| -x.abs() * 3.0).collect()),
        ("a few far out", normal.iter().map(|x| x * x * x * x * x).collect()),
        ("tiny", normal.iter().map(|x| x * 3e-5).collect()),
    ];
    for (what, x) in cases {
        for kind in [QuantType::Q8_0, QuantType::Q4K] {
            let tensor = Tensor::new(x.as_slice(), &Device::Cpu).unwrap();
            let theirs = QTensor::quantize(&tensor, ggml(kind)).unwrap().dequantize(&Device::Cpu).unwrap();
            let theirs = squares(&theirs.to_vec1().unwrap(), &x);
            let ours = squares(&made(kind, &x), &x);
            let relative = (ours / squares(&x, &vec![0.0; x.len()])).sqrt();
            println!(
                "measured: {} of {what}: relative error {relative:.4}, squared {:.3} of candle's",
                kind.name(),
                ours / theirs
            );
            assert!(ours <= 0.96 * theirs, "{} of {what}: {ours:e} against {theirs:e}", kind.name());
        }
    }
}

#[test]
fn odd_blocks_are_made_too() {
    let close = |got: &[f32], want: f32| got.iter().all(|x| (x - want).abs() < 1e-3 * want.abs().max(1e-3));
    for kind in [QuantType::Q8_0, QuantType::Q4K] {
        assert_eq!(made(kind, &[0.0; 512]), [0.0; 512]);
        assert!(close(&made(kind, &[0.7; 256]), 0.7), "{}", kind.name());
        assert!(close(&made(kind, &[-3.0; 256]), -3.0), "{}", kind.name());
        let mut damaged = vec![1.0f32; 512];
        damaged[300] = f32::NAN;
        assert!(made(kind, &damaged)[300].is_nan(), "{}", kind.name());
        damaged[300] = f32::INFINITY;
        assert!(!made(kind, &damaged)[300].is_finite(), "{}", kind.name());
        // too large for the scale of a block: as large as it gets, but a number
        assert!(made(kind, &[1e30; 256]).iter().all(|x| x.is_finite() && *x > 1e5), "{}", kind.name());
    }
}

#[test]
fn stored_types_are_made_into_the_same_blocks() {
    let half: Vec<half::bf16> = Noise::new(4).normal(1024).into_iter().map(half::bf16::from_f32).collect();
    let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    for kind in [QuantType::Q8_0, QuantType::Q4K] {
        let (mut a, mut b) = (vec![0; kind.size(1024)], vec![0; kind.size(1024)]);
        encode(kind, Rows::F32(&wide), &mut a);
        encode(kind, Rows::Bf16(&half), &mut b);
        assert_eq!(a, b);
    }
}

/// A product by blocks is the product by the numbers that are in them, bit for bit.
struct Same(QuantType);

impl Job for Same {
    type Done = ();

    fn run<K: Kernel>(self) {
        let kind = self.0;
        for (m, k, n) in [(3, 256, 5), (401, 768, 37), (29, 2048, 300)] {
            let x: Vec<K::Elem> =
                Noise::new(5).normal(m * k).into_iter().map(super::super::micro::Element::from_f32).collect();
            let bytes = random::blocks(kind, n * k);
            let wide = candle_reads(kind, &bytes);
            let run = |rows: Rows| -> Vec<f32> {
                let operand = Operand::matrix(&x, m, k, k);
                // SAFETY: a product writes all of its result.
                unsafe { filled(m * n, |y| product::<K, f32>(&operand, rows, n, RowEpilogue::default(), y, n)) }
            };
            let (got, want) = (run(Rows::QuantType { kind, bytes: &bytes }), run(Rows::F32(&wide)));
            assert!(got.iter().any(|y| *y != 0.0));
            assert_eq!(got, want, "{} {m} x {k} x {n}", kind.name());
        }
    }
}

#[test]
fn products_read_blocks() {
    for isa in Isa::all() {
        for math in [MatmulType::F32, MatmulType::Bf16] {
            for kind in QuantType::ALL {
                dispatch_on(isa, math, Same(kind));
            }
        }
    }
}
