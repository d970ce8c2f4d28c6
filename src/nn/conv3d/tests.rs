use super::*;
use crate::nn::kernel::MatmulType;
use crate::nn::norm::Norm;
use crate::nn::path::WIDE;
use crate::nn::table::Table;
use crate::nn::testing::{distance, values};

/// The two forms add up in another order.
const LIMIT: f32 = 1e-5;

#[test]
fn fast_form_equals_plain_form() -> Result<()> {
    for (kernel, stride, shape) in [
        (3, [1, 1, 1], [2, 5, 4, 7, 6]),
        (3, [2, 2, 2], [1, 6, 5, 8, 3]),
        (1, [1, 1, 1], [1, 2, 3, 3, 5]),
        (3, [1, 1, 1], [1, 3, 1, 1, 4]),
    ] {
        let weight = values(&[9, shape[4], kernel, kernel, kernel], 10)?;
        let conv = Conv3d::new(&weight, values(&[9], 11)?, stride)?;
        let x = values(&shape, 12)?;
        let plain = conv.taps(&x, Fusion::default())?;
        assert!(distance(&conv.forward(std::slice::from_ref(&x), Fusion::default())?, &plain)? < LIMIT);
        let (scale, residual) = (Table::one(&values(&[shape[4]], 13)?)?, values(plain.dims(), 14)?);
        let prologue = NormAct::new(Norm::Rms, 1e-6).scale(&scale).silu();
        let around = Fusion { prologue: Some(prologue), residual: Some(&residual) };
        assert!(distance(&conv.forward(std::slice::from_ref(&x), around)?, &conv.taps(&x, around)?)? < LIMIT);
    }
    Ok(())
}

/// Factors are rounded to bf16 in one form and not in the other, in about a thousand terms; relative to the largest result.
const HALF: f32 = 1e-2;

/// Kernels of bf16, in pairs where this CPU multiplies them so, which the sizes are made for.
#[test]
fn half_kernels_equal_plain_form_nearly() -> Result<()> {
    for (outputs, shape, stride) in
        [(33, [2, 4, 5, 7, 66], [1; 3]), (48, [1, 3, 13, 1, 70], [1; 3]), (33, [1, 5, 4, 6, 66], [1, 2, 2])]
    {
        let inputs = shape[4];
        let weight = values(&[outputs, inputs, 3, 3, 3], 10)?.to_dtype(DType::BF16)?;
        let bias = values(&[outputs], 11)?;
        let conv = Conv3d::new(&weight, bias.clone(), stride)?;
        assert_eq!(matches!(conv.weight, Weight::Paired(_)), kernel::is_half(MatmulType::Bf16) && stride == [1; 3]);
        let exact = Conv3d::new(&weight.to_dtype(DType::F32)?, bias, stride)?;
        let (x, scale) = (values(&shape, 12)?, Table::one(&values(&[inputs], 13)?)?);
        let residual = values(exact.taps(&x, Fusion::default())?.dims(), 14)?;
        let prologue = NormAct::new(Norm::Rms, 1e-6).scale(&scale).silu();
        let around = Fusion { prologue: Some(prologue), residual: Some(&residual) };
        let want = exact.taps(&x, around)?;
        assert!(distance(&conv.forward(std::slice::from_ref(&x), around)?, &want)? < HALF);
        assert!(distance(&conv.taps(&x, around)?, &want)? < HALF); // from what is left of the kernel
    }
    Ok(())
}

/// From either side: bit for bit what the same numbers in an f32 kernel give.
#[test]
fn few_channels_are_multiplied_in_f32() -> Result<()> {
    for (outputs, shape) in [(WIDE - 1, [2, 4, 5, 7, 33]), (19, [1, 3, 6, 5, WIDE - 1])] {
        let weight = values(&[outputs, shape[4], 3, 3, 3], 10)?.to_dtype(DType::BF16)?;
        let bias = values(&[outputs], 11)?;
        let run = |weight: &Tensor| -> Result<Vec<f32>> {
            let conv = Conv3d::new(weight, bias.clone(), [1; 3])?;
            conv.forward(&[values(&shape, 12)?], Fusion::default())?.flatten_all()?.to_vec1()
        };
        assert!(run(&weight)? == run(&weight.to_dtype(DType::F32)?)?);
    }
    Ok(())
}

/// Frames in two windows, in parts, and on more threads: bit for bit the same, in either form.
#[test]
fn windows_and_threads_change_nothing() -> Result<()> {
    let weight = values(&[40, 66, 3, 3, 3], 10)?;
    for weight in [weight.clone(), weight.to_dtype(DType::BF16)?] {
        let conv = Conv3d::new(&weight, values(&[40], 11)?, [1; 3])?;
        let x = values(&[2, 7, 26, 9, 66], 12)?;
        let run = |threads: usize, windows: &[&[(usize, usize)]]| -> Result<Vec<f32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let window = |parts: &&[(usize, usize)]| {
                let parts = parts.iter().map(|(first, count)| x.narrow(FRAMES, *first, *count));
                conv.forward(&parts.collect::<Result<Vec<_>>>()?, Fusion::default())
            };
            let all = pool.install(|| windows.iter().map(window).collect::<Result<Vec<_>>>())?;
            Tensor::cat(&all, FRAMES)?.flatten_all()?.to_vec1()
        };
        let want = run(1, &[&[(0, 7)]])?;
        assert!(want == run(3, &[&[(0, 7)]])?);
        assert!(want == run(3, &[&[(0, 1), (1, 2)], &[(1, 3), (4, 1), (5, 2)]])?);
    }
    Ok(())
}

#[test]
fn one_pixel_through_an_identity_kernel() -> Result<()> {
    let mut kernel = vec![0f32; 27];
    kernel[13] = 1.0;
    let weight = Tensor::from_vec(kernel, (1, 1, 3, 3, 3), &Device::Cpu)?;
    let conv = Conv3d::new(&weight, Tensor::new(&[0.5f32], &Device::Cpu)?, [1, 1, 1])?;
    let x = values(&[1, 3, 2, 2, 1], 13)?;
    let want = (x.narrow(FRAMES, 1, 1)? + 0.5)?;
    assert_eq!(
        conv.forward(std::slice::from_ref(&x), Fusion::default())?.flatten_all()?.to_vec1::<f32>()?,
        want.flatten_all()?.to_vec1::<f32>()?
    );
    Ok(())
}
