//! The kernels against the plain form. They need a GPU.

use super::*;
use crate::nn::conv3d::{Conv3d, Fusion};
use crate::nn::norm::NormAct;
use crate::nn::testing::{distance, values};
use candle_core::Device;

/// What rounding the result takes, relative to the largest value: half a bit of bf16's eight, of f16's eleven; in f32 the two
/// forms sum in another order.
fn limit(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 4e-3,
        DType::F16 => 6e-4,
        _ => 2e-6,
    }
}

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Values as `dtype` holds them: in f32 on the CPU, and on the GPU.
fn both(shape: &[usize], seed: u64, dtype: DType, gpu: &Device) -> Result<(Tensor, Tensor)> {
    let rounded = values(shape, seed)?.to_dtype(dtype)?;
    Ok((rounded.to_dtype(DType::F32)?, rounded.to_device(gpu)?))
}

fn apart(got: &Tensor, want: &Tensor) -> Result<f32> {
    distance(&got.to_device(&Device::Cpu)?.to_dtype(DType::F32)?, want)
}

#[test]
#[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
fn norms_equal_the_plain_form() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    for dtype in TYPES {
        for d in [5, 6, 37, 48, 128, 2048, 4096] {
            let (x, x_gpu) = both(&[1, 7, d], 1, dtype, &gpu)?;
            let (scale, scale_gpu) = both(&[3, d], 2, dtype, &gpu)?;
            let (shift, shift_gpu) = both(&[1, d], 3, dtype, &gpu)?;
            let index = Tensor::new(&[0u32, 2, 1, 1, 0, 2, 2], &Device::Cpu)?;
            let index_gpu = index.to_device(&gpu)?;
            for norm in [Norm::Rms, Norm::Layer] {
                let tables = |scale: &Tensor, index: &Tensor, shift: &Tensor| {
                    let scale = Table { rows: scale.clone(), index: Some(index.clone()) };
                    (scale, Table { rows: shift.clone(), index: None })
                };
                let (scale, shift) = tables(&scale, &index, &shift);
                let want = NormAct::new(norm, 1e-6).scale(&scale).shift(&shift).silu().plain(&x)?;
                let (scale, shift) = tables(&scale_gpu, &index_gpu, &shift_gpu);
                let got = NormAct::new(norm, 1e-6)
                    .scale(&scale)
                    .shift(&shift)
                    .silu()
                    .forward(&x_gpu, crate::nn::kernel::MatmulType::F32)?;
                let off = apart(&got, &want)?;
                assert!(off < limit(dtype), "{dtype:?} {d} {norm:?}: {off}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
fn positions_equal_the_plain_form() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    for dtype in TYPES {
        for d in [6, 48, 2048] {
            let coords: Vec<[f32; 3]> = (0..9).map(|i| [i as f32 / 9.0, 0.3, 1.0 - i as f32 / 10.0]).collect();
            let (rope, rope_gpu) = (Rope::new(&coords, d, 1e4, &Device::Cpu)?, Rope::new(&coords, d, 1e4, &gpu)?);
            let (x, x_gpu) = both(&[1, 9, d], 4, dtype, &gpu)?;
            let (weight, weight_gpu) = both(&[d], 5, dtype, &gpu)?;
            assert!(
                apart(&norm_act(&x_gpu, RowOps { rope: Some(&rope_gpu), ..RowOps::default() })?, &rope.apply(&x)?)?
                    < limit(dtype)
            );
            let (one, one_gpu) = (Table::one(&weight)?, Table::one(&weight_gpu)?);
            let want = rope.apply(&NormAct::new(Norm::Rms, 1e-5).scale(&one).plain(&x)?)?;
            let how = RowOps {
                norm: Some((Norm::Rms, 1e-5)),
                scale: Some(&one_gpu),
                rope: Some(&rope_gpu),
                ..RowOps::default()
            };
            let got = norm_act(&x_gpu, how)?;
            assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {d}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
fn what_follows_a_product_equals_the_plain_form() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    for dtype in TYPES {
        for d in [5, 6, 48, 2048] {
            let (x, x_gpu) = both(&[1, 7, d], 6, dtype, &gpu)?;
            let (bias, bias_gpu) = both(&[d], 7, dtype, &gpu)?;
            let (gate, gate_gpu) = both(&[1, d], 8, dtype, &gpu)?;
            let (residual, residual_gpu) = both(&[1, 7, d], 9, dtype, &gpu)?;
            let want = x.broadcast_add(&bias)?.gelu()?.broadcast_mul(&gate)?.add(&residual)?;
            let gate_gpu = Table { rows: gate_gpu, index: None };
            let (bias, residual) = (Some(&bias_gpu), Some(&residual_gpu));
            let how = Epilogue { bias, gelu: true, gate: Some(&gate_gpu), residual, ..Epilogue::default() };
            let got = finish(&x_gpu, how)?;
            assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {d}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
fn boxes_equal_those_of_the_cpu() -> Result<()> {
    use crate::nn::spread::{Order, gather, spread};
    let gpu = Device::new_cuda(0)?;
    for dtype in TYPES {
        for order in [Order::Lines, Order::Columns] {
            let stride = [2, 3, 2];
            let (x, x_gpu) = both(&[1, 3, 2, 5, 4 * 12], 14, dtype, &gpu)?;
            let (plus, plus_gpu) = both(&[1, 3, 2, 5, 2 * 12], 15, dtype, &gpu)?;
            let want = spread(&x, stride, Some(&plus), order)?.expect("on the CPU");
            let got = spread(&x_gpu, stride, Some(&plus_gpu), order)?.expect("on the GPU");
            assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {order:?}");
            let (y, y_gpu) = both(want.dims(), 16, dtype, &gpu)?;
            for mean in [1, 6] {
                let want = gather(&y, stride, mean, order)?.expect("on the CPU");
                let got = gather(&y_gpu, stride, mean, order)?.expect("on the GPU");
                assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {order:?} {mean}");
            }
        }
    }
    Ok(())
}

/// Products of bf16 values added up in f32 in another order; the result is rounded to bf16.
const CONV: f32 = 5e-3;

#[test]
#[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
fn convolutions_equal_the_plain_form() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let sizes =
        [(8, 6, [1, 1, 1]), (64, 128, [1, 1, 1]), (72, 48, [1, 1, 1]), (128, 136, [1, 2, 2]), (16, 16, [2, 2, 2])];
    for (inputs, outputs, stride) in sizes {
        let (x, x_gpu) = both(&[1, 5, 9, 20, inputs], 10, DType::BF16, &gpu)?;
        let (weight, weight_gpu) = both(&[outputs, inputs, 3, 3, 3], 11, DType::BF16, &gpu)?;
        let (bias, bias_gpu) = both(&[outputs], 12, DType::BF16, &gpu)?;
        let want = Conv3d::new(&weight, bias, stride)?.forward(&[x], Fusion::default())?;
        let (residual, residual_gpu) = both(want.dims(), 13, DType::BF16, &gpu)?;
        let conv = Conv3d::new(&weight_gpu, bias_gpu, stride)?;
        let got = conv.forward(&[x_gpu], Fusion { residual: Some(&residual_gpu), ..Fusion::default() })?;
        let off = apart(&got, &(want + residual)?)?;
        assert!(off < CONV, "{inputs} to {outputs}: {off}");
    }
    Ok(())
}
