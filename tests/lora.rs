//! LoRAs: against diffusers, and what has to hold whatever the numbers are.

use crate::common::{Golden, Scratch, assert_close, assert_within, golden_path, numbers};
use candle_core::{DType, Device, Result, Tensor, Var};
use reel::models::ltx::config::TransformerConfig;
use reel::models::ltx::names::LAYERS;
use reel::models::ltx::transformer::Transformer;
use reel::models::random;
use reel::nn::kernel::MatmulType;
use reel::nn::kernel::blocks::QuantType;
use reel::nn::linear::{Epilogue, Linear, Lora};
use reel::nn::matrix::Matrix;
use reel::nn::rope::Rope;
use reel::nn::table::Table;
use reel::sampling::noise::Noise;
use reel::weights::open::Tensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Fused and unfused forms sum in another order.
const ORDER: f32 = 2e-6;
/// Where a CPU multiplies blocks in bf16, both factors are rounded to eight bits.
const HALF: f32 = 1e-2;

/// A safetensors file of f32 tensors.
fn write(path: &str, tensors: &[(String, Tensor)], metadata: Option<(&str, &str)>) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, x)| numbers(x).iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, x), bytes)| (name.clone(), TensorView::new(Dtype::F32, x.dims().to_vec(), bytes).unwrap()));
    let metadata = metadata.map(|(key, text)| HashMap::from([(key.to_string(), text.to_string())]));
    safetensors::serialize_to_file(views, metadata, Path::new(path)).unwrap();
}

/// The golden's transformer with LoRAs, run over the golden's inputs.
fn velocity(golden: &Golden, loras: &[(&str, f64)]) -> anyhow::Result<Tensor> {
    let config = TransformerConfig::parse(&golden.config(), "lora").unwrap();
    let path = golden_path("lora");
    let weights = Tensors::open(&[path])?.renamed(|name| name.strip_prefix("weights.").map(String::from));
    let weights = weights.with_loras(loras.iter().map(|(path, scale)| (Path::new(*path), *scale)), LAYERS)?;
    let model = Transformer::load(&config, weights.load(None, DType::F32, &Device::Cpu))?;
    let mut shares = vec![];
    for f in 0..2 {
        for h in 0..3 {
            for w in 0..3 {
                let at = [f as f32 * 8.0 / 25.0, h as f32 * 32.0, w as f32 * 32.0];
                shares.push(std::array::from_fn(|i| at[i] / config.max_pos[i]));
            }
        }
    }
    let rope = Rope::new(&shares, config.width(), config.theta, &Device::Cpu)?;
    let context = model.context(&golden.at("in.context"))?;
    Ok(model.forward(&golden.at("in.latents"), &context, &golden.numbers("in.timestep"), &rope)?)
}

/// An adapter of the golden as a file; `rename` changes its keys.
fn adapter(golden: &Golden, scratch: &Scratch, name: &str, rename: impl Fn(&str) -> String) -> String {
    let file = Tensors::open(&[golden_path("lora")]).unwrap();
    let prefix = format!("in.{name}.");
    let tensors: Vec<(String, Tensor)> =
        file.names().filter_map(|key| Some((rename(key.strip_prefix(&prefix)?), golden.at(key)))).collect();
    assert!(!tensors.is_empty());
    let path = scratch.path(&format!("{name}.safetensors"));
    let metadata = (name == "sharp").then(|| ("lora_adapter_metadata", golden.text("sharp")));
    write(&path, &tensors, metadata);
    path
}

#[test]
fn as_diffusers_loads_them() -> anyhow::Result<()> {
    let golden = Golden::open("lora");
    let scratch = Scratch::new("lora-golden");
    let as_is = |key: &str| key.to_string();
    let path = |name: &str| adapter(&golden, &scratch, name, as_is);
    let (style, motion, sharp) = (path("style"), path("motion"), path("sharp"));
    assert_close("without", &velocity(&golden, &[])?, &golden.at("out.none"));
    assert_close("diffusers' form", &velocity(&golden, &[(&style, 1.0)])?, &golden.at("out.style"));
    assert_close("scaled", &velocity(&golden, &[(&style, 0.3)])?, &golden.at("out.style_less"));
    let two = velocity(&golden, &[(&style, 0.7), (&motion, -1.2)])?;
    assert_close("two, one in ComfyUI's form", &two, &golden.at("out.two"));
    assert_close("alpha in the metadata", &velocity(&golden, &[(&sharp, 1.0)])?, &golden.at("out.sharp"));
    // the limits can tell
    let off =
        |a: &str, b: &str| -> Result<f32> { (golden.at(a) - golden.at(b))?.abs()?.flatten_all()?.max(0)?.to_scalar() };
    for name in ["out.style", "out.style_less", "out.two", "out.sharp"] {
        assert!(off(name, "out.none")? > 0.1, "{name}");
    }
    Ok(())
}

type Rename<'a> = &'a dyn Fn(&str) -> String;

#[test]
fn every_form_of_names_means_the_same() -> anyhow::Result<()> {
    let golden = Golden::open("lora");
    let want = numbers(&golden.at("out.style"));
    let official = |key: &str| key.replace("proj_in", "patchify_proj").replace("time_embed", "adaln_single");
    let bare = |key: &str| key.strip_prefix("transformer.").unwrap().to_string();
    let forms: [(&str, Rename); 7] = [
        ("bare", &bare),
        ("default", &|key| bare(key).replace(".weight", ".default.weight")),
        ("peft", &|key| format!("base_model.model.{}", bare(key))),
        ("comfy", &|key| format!("diffusion_model.{}", official(&bare(key)))),
        ("down and up", &|key| official(key).replace("lora_A", "lora_down").replace("lora_B", "lora_up")),
        ("old", &|key| key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")),
        ("kohya", &|key| {
            let key = official(&bare(key));
            let (module, rest) = key.split_at(key.find(".lora_").unwrap());
            format!("lora_unet_{}{}", module.replace('.', "_"), rest.replace("_A", "_down").replace("_B", "_up"))
        }),
    ];
    for (form, rename) in forms {
        let scratch = Scratch::new("lora-form");
        let path = adapter(&golden, &scratch, "style", rename);
        let got = velocity(&golden, &[(&path, 1.0)])?;
        let got = Tensor::from_vec(numbers(&got), want.len(), &Device::Cpu)?;
        assert_close(form, &got, &Tensor::new(want.as_slice(), &Device::Cpu)?);
    }
    Ok(())
}

#[test]
fn scales_alphas_and_sums() -> anyhow::Result<()> {
    let golden = Golden::open("lora");
    let scratch = Scratch::new("lora-laws");
    let style = adapter(&golden, &scratch, "style", |key| key.to_string());
    let bits = |x: Tensor| numbers(&x).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    // nothing times anything is nothing
    assert!(bits(velocity(&golden, &[(&style, 0.0)])?) == bits(velocity(&golden, &[])?));
    // one at 1 is two at a half
    let whole = velocity(&golden, &[(&style, 1.0)])?;
    assert_close("two halves", &velocity(&golden, &[(&style, 0.5), (&style, 0.5)])?, &whole);
    // their order does not matter
    let motion = adapter(&golden, &scratch, "motion", |key| key.to_string());
    let (a, b) = ([(&*style, 0.7), (&*motion, 0.4)], [(&*motion, 0.4), (&*style, 0.7)]);
    assert_close("the other order", &velocity(&golden, &a)?, &velocity(&golden, &b)?);
    // an alpha of half the rank is half the scale
    let file = Tensors::open(&[PathBuf::from(&style)])?;
    let mut tensors: Vec<(String, Tensor)> = vec![];
    for key in file.names() {
        tensors.push((key.to_string(), golden.at(&format!("in.style.{key}"))));
        if let Some(layer) = key.strip_suffix(".lora_A.weight") {
            tensors.push((format!("{layer}.alpha"), Tensor::new(1.5f32, &Device::Cpu)?)); // of rank 3
        }
    }
    let path = scratch.path("alpha.safetensors");
    write(&path, &tensors, None);
    assert!(bits(velocity(&golden, &[(&path, 1.0)])?) == bits(velocity(&golden, &[(&style, 0.5)])?));
    Ok(())
}

/// What PEFT's settings make of a LoRA of rank 3, wherever they stand.
#[test]
fn settings_decide_the_scale() -> anyhow::Result<()> {
    let golden = Golden::open("lora");
    let bits = |x: Tensor| numbers(&x).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let plain = Scratch::new("lora-plain");
    let bare = |key: &str| key.strip_prefix("transformer.").unwrap().to_string();
    let style = adapter(&golden, &plain, "style", bare);
    let file = Tensors::open(&[PathBuf::from(&style)])?;
    let tensors: Vec<(String, Tensor)> =
        file.names().map(|key| (key.to_string(), golden.at(&format!("in.style.transformer.{key}")))).collect();
    let half = bits(velocity(&golden, &[(&style, 0.5)])?);
    let peft = |key: &str| format!("base_model.model.{}", bare(key));
    // beside PEFT's file and beside any other whose ranks they say
    let beside: [(&str, &str, Option<f64>); 8] = [
        ("peft", r#"{"r": 3, "lora_alpha": 1.5}"#, Some(0.5)),
        ("peft", r#"{"r": 3, "lora_alpha": 3}"#, Some(1.0)),
        ("peft", r#"{"lora_alpha": 3, "use_rslora": true}"#, Some(3f64.sqrt())),
        ("peft", r#"{"r": 8, "rank_pattern": {"^.*": 3}, "lora_alpha": 1.5}"#, None),
        ("bare", r#"{"r": 3, "lora_alpha": 1.5}"#, Some(0.5)),
        // of another LoRA in the same folder
        ("bare", r#"{"r": 4, "lora_alpha": 1.5, "use_dora": true}"#, Some(1.0)),
        (
            "bare",
            r#"{"r": 3, "lora_alpha": 60, "alpha_pattern": {"to_q": 1.5, "to_v": 1.5, "to_out\\.0$": 1.5}}"#,
            None,
        ),
        ("bare", r#"{"r": 3, "lora_alpha": "1.5"}"#, Some(0.5)),
    ];
    for (form, settings, want) in beside {
        let scratch = Scratch::new("lora-beside");
        let path = adapter(&golden, &scratch, "style", |key| if form == "peft" { peft(key) } else { bare(key) });
        std::fs::write(scratch.path("adapter_config.json"), settings)?;
        match (velocity(&golden, &[(&path, 1.0)]), want) {
            (Ok(got), Some(scale)) => assert!(bits(got) == bits(velocity(&golden, &[(&style, scale)])?), "{settings}"),
            (Ok(got), None) => assert!(bits(got) != bits(velocity(&golden, &[(&style, 1.0)])?), "{settings}"),
            (Err(error), want) => assert!(want.is_none(), "{settings}: {error}"),
        }
    }
    // in the header, where other programs put them
    let headers = [
        ("lora_adapter_metadata", r#"{"transformer.r": 3, "transformer.lora_alpha": 1.5}"#),
        ("lora_config", r#"{"r": 3, "lora_alpha": 1.5, "init_lora_weights": true}"#),
        ("lora_alpha", "1.5"),
    ];
    for (key, text) in headers {
        let path = plain.path("header.safetensors");
        write(&path, &tensors, Some((key, text)));
        assert!(bits(velocity(&golden, &[(&path, 1.0)])?) == half, "{key}");
    }
    Ok(())
}

/// A difference of a bias is added to it, by the LoRA's scale and by nothing else.
#[test]
fn differences_of_biases() -> anyhow::Result<()> {
    let golden = Golden::open("lora");
    let scratch = Scratch::new("lora-bias");
    let weights = Tensors::open(&[golden_path("lora")])?;
    let weights = weights.renamed(|name| name.strip_prefix("weights.").map(String::from));
    let layer = "transformer_blocks.0.attn1.to_q";
    let width = weights.shape(&format!("{layer}.bias")).unwrap()[0];
    let path = scratch.path("bias.safetensors");
    let difference = (values(&[width], 5) * 0.1)?;
    write(&path, &[(format!("diffusion_model.{layer}.diff_b"), difference.clone())], None);
    let bias = |scale: f64| -> anyhow::Result<Tensor> {
        let lora = weights.clone().with_loras([(Path::new(&path), scale)].into_iter(), LAYERS)?;
        Ok(lora.load(None, DType::F32, &Device::Cpu).get(width, &format!("{layer}.bias"))?)
    };
    let own = weights.load(None, DType::F32, &Device::Cpu).get(width, &format!("{layer}.bias"))?;
    for scale in [1.0, -0.3, 0.0] {
        assert_eq!(numbers(&bias(scale)?), numbers(&(&own + (&difference * scale)?)?), "{scale}");
    }
    assert!(numbers(&velocity(&golden, &[(&path, 1.0)])?) != numbers(&golden.at("out.none")));
    Ok(())
}

fn values(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(Noise::new(seed).normal(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// Beside weights of every kind, and with everything that may follow a layer, the sum is that of plain tensors.
#[test]
fn sums_beside_weights_of_every_kind() -> Result<()> {
    let (rows, inputs, outputs, rank) = (37, 512, 96, 5);
    let dense = values(&[outputs, inputs], 1);
    let blocks =
        |kind: QuantType| Matrix::made(kind, random::blocks(kind, outputs * inputs), outputs, inputs, MatmulType::F32);
    let half =
        |kind: QuantType| Matrix::made(kind, random::blocks(kind, outputs * inputs), outputs, inputs, MatmulType::Bf16);
    let weights = [
        ("f32", Matrix::new(dense.clone()), ORDER),
        ("bf16", Matrix::new(dense.to_dtype(DType::BF16)?), HALF),
        ("Q8_0", blocks(QuantType::Q8_0), ORDER),
        ("Q4_K", blocks(QuantType::Q4K), ORDER),
        ("Q8_0 in bf16", half(QuantType::Q8_0), HALF),
        ("Q6_K in bf16", half(QuantType::Q6K), HALF),
    ];
    let low = |seed| Lora {
        down: Linear::new(Matrix::new((values(&[rank, inputs], seed) * 0.05).unwrap()), None),
        up: Linear::new(Matrix::new(values(&[outputs, rank], seed + 1)), None),
        scale: 0.6,
    };
    let x = values(&[1, rows, inputs], 9);
    let (factor, residual) = (values(&[1, rows, outputs], 10), values(&[1, rows, outputs], 11));
    let gate = Table::one(&values(&[outputs], 12))?;
    for (what, weight, limit) in weights {
        let layer = Linear::new(weight, Some(values(&[outputs], 13))).with(vec![low(20), low(30)]);
        let then =
            Epilogue { gelu: true, gate: Some(&gate), factor: Some(&factor), residual: Some(&residual), narrow: false };
        let got = layer.forward_then(&x, then)?;
        // a variable is differentiated, which takes the plain way
        let want = layer.forward_then(Var::from_tensor(&x)?.as_tensor(), then)?;
        assert_within(what, &got, &want.detach(), limit);
        assert_within(
            &format!("{what}, bare"),
            &layer.forward(&x)?,
            &layer.forward(Var::from_tensor(&x)?.as_tensor())?.detach(),
            limit,
        );
    }
    Ok(())
}
