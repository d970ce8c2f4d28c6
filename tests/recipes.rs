//! What the released models' recipes are made of, against diffusers, and the laws that hold whatever the numbers are.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Golden, Scratch, assert_close, assert_within, golden_path, numbers};
use reel::models::ltx::upscaler::{Upscaler, UpscalerConfig};
use reel::nn::group_norm::GroupNorm;
use reel::upscaler::{adain, tone_map};
use reel::video::resize::bilinear;
use reel::weights::open::Tensors;
use std::collections::HashMap;

/// Means and deviations over 60 to 240 values in f32, in another order; measured 4e-7.
const STATISTIC_ERROR: f32 = 2e-6;

/// Channels last, as everything here has them: (b, c, f, h, w) -> (b, f, h, w, c).
fn last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 4, 1))?.contiguous()
}

/// Bits, so that equal means equal.
fn bits(x: &Tensor) -> Vec<u32> {
    numbers(x).iter().map(|v| v.to_bits()).collect()
}

#[test]
fn upscalers() -> Result<()> {
    for name in ["upscaler", "upscaler_2d", "upscaler_time"] {
        let golden = Golden::open(name);
        let file = Tensors::open(&[golden_path(name)]).unwrap();
        let config = UpscalerConfig::parse(&golden.config(), name).unwrap();
        let shape = |name: &str| file.shape(name).map(<[usize]>::to_vec);
        assert_eq!(UpscalerConfig::from_shapes(shape, name).unwrap(), config, "{name}: what its shapes say");
        let upscaler = Upscaler::load(&config, file.load(None, DType::F32, &Device::Cpu))?;
        let got = upscaler.forward(&last(&golden.at("in.latents"))?)?;
        assert_close(&format!("latent upscaler, {name}"), &got, &last(&golden.at("out.latents"))?);
    }
    Ok(())
}

#[test]
fn group_norm() -> Result<()> {
    let golden = Golden::open("upscaler");
    let vars = HashMap::from(["weight", "bias"].map(|x| (x.to_string(), golden.at(&format!("in.group_norm.{x}")))));
    let scratch = Scratch::new("group-norm");
    candle_core::safetensors::save(&vars, scratch.path("norm.safetensors"))?;
    let file = Tensors::open(&[scratch.path("norm.safetensors").into()]).unwrap();
    let norm = GroupNorm::load(12, 4, 1e-5, file.load(None, DType::F32, &Device::Cpu))?;
    let got = norm.forward(&last(&golden.at("in.group_norm"))?)?;
    assert_close("group norm", &got, &last(&golden.at("out.group_norm"))?);
    Ok(())
}

#[test]
fn statistics_and_tones_of_upscaled_latents() -> Result<()> {
    let golden = Golden::open("upscaler");
    let (large, reference) = (last(&golden.at("in.large"))?, last(&golden.at("in.reference"))?);
    for factor in [0.3, 0.7, 1.0] {
        let want = last(&golden.at(&format!("out.adain_{factor:?}")))?;
        assert_within(&format!("AdaIN {factor}"), &adain(&large, &reference, factor).unwrap(), &want, STATISTIC_ERROR);
    }
    for compression in [0.6, 1.0] {
        let want = last(&golden.at(&format!("out.tone_map_{compression:?}")))?;
        assert_close(&format!("tone map {compression}"), &tone_map(&large, compression).unwrap(), &want);
    }
    assert!(bits(&adain(&large, &reference, 0.0).unwrap()) == bits(&large), "AdaIN 0 changes nothing");
    assert!(bits(&tone_map(&large, 0.0).unwrap()) == bits(&large), "tone map 0 changes nothing");
    Ok(())
}

#[test]
fn torchs_bilinear_resizing() -> Result<()> {
    let golden = Golden::open("upscaler");
    let packed = |name: &str| golden.at(name).squeeze(0)?.permute((1, 2, 0))?.contiguous(); // (h, w, 3)
    let picture = packed("in.picture")?;
    let (h, w, _) = picture.dims3()?;
    for (width, height) in [(5, 3), (16, 13), (11, 20)] {
        let got = bilinear(&numbers(&picture), (w, h), (width, height));
        let got = Tensor::from_vec(got, (height, width, 3), &Device::Cpu)?;
        let want = packed(&format!("out.bilinear_{width}x{height}"))?;
        assert_close(&format!("bilinear, {w}x{h} to {width}x{height}"), &got, &want);
    }
    assert_eq!(bilinear(&numbers(&picture), (w, h), (w, h)), numbers(&picture));
    Ok(())
}
