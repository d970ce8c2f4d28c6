//! Each part against the numbers that diffusers and transformers give for it (`goldens/make_goldens.py`).
//! `cargo test --release --test all -- goldens:: --nocapture | grep measured` lists the errors.

use crate::common::{Golden, assert_close, assert_within, numbers};
use candle_core::{DType, Device, IndexOp, Result, Tensor};
use reel::job::geometry::{Geometry, Grid};
use reel::models::ltx::conditioning::Tokens;
use reel::models::ltx::config::{TransformerConfig, VaeConfig};
use reel::models::ltx::positions;
use reel::models::ltx::schedule::SchedulerConfig;
use reel::models::ltx::transformer::{Block, Modulation, Transformer};
use reel::models::ltx::vae::{Decoder, Encoder};
use reel::models::text::t5::{T5, T5Config};
use reel::nn::rope::Rope;
use reel::nn::stream::Chunking;
use reel::nn::tiles::{Tiling, assemble};
use reel::sampling::guidance::Guidance;
use reel::sampling::noise::Noise;
use reel::sampling::solver::{Schedule, Shift, euler};
use serde_json::json;

const LTX: Geometry = Geometry { time: 8, space: 32 };

/// Rotary angles reach 15,700 radians, where f32 has steps of 1e-3, and torch's `pow` differs from the rounded one in the
/// last bit at a few frequencies.
const ROPE_ERROR: f32 = 3e-4;

/// Reel bends levels in f64 and rounds them once; diffusers does it in f32, where the stretch to the last level cancels digits
/// on long clips: measured 3e-7 at 8,064 tokens, nothing without a shift.
const LEVEL_ERROR: f32 = 1e-6;

#[test]
fn t5() -> Result<()> {
    let golden = Golden::open("t5");
    let config = T5Config::parse(&golden.config(), "t5").unwrap();
    let encoder = T5::load(&config, golden.weights(None))?;
    let ids = |name: &str| golden.numbers(name).iter().map(|&id| id as u32).collect::<Vec<_>>();
    let encode = |name: &str| encoder.encode(&ids(name), || ());
    assert_close("T5, 150 ids", &encode("in.ids")?, &golden.at("out.hidden"));
    let real = encode("in.ids_unpadded")?;
    assert_close("T5, 23 ids", &real, &golden.at("out.unpadded"));
    // what the reference makes of these ids with 14 masked pads after them
    assert_close("T5, 23 ids of 37 under a mask", &real, &golden.at("out.masked_real"));
    Ok(())
}

/// Every second value of a reference table: (n, d) -> (n, d / 2); it holds each value twice.
fn half(table: &Tensor) -> Result<Tensor> {
    let (n, d) = table.dims2()?;
    let pairs = table.reshape((n, d / 2, 2))?;
    let (first, second) = (pairs.i((.., .., 0))?.contiguous()?, pairs.i((.., .., 1))?.contiguous()?);
    assert_eq!(numbers(&first), numbers(&second));
    Ok(first)
}

#[test]
fn transformer_block() -> Result<()> {
    let golden = Golden::open("transformer_block");
    let config = TransformerConfig::parse(&golden.config(), "block").unwrap();
    let block = Block::load(&config, golden.weights(None))?;
    let (b, n, d) = golden.at("in.hidden").dims3()?;
    for (temb, out) in [("in.temb", "out.hidden"), ("in.temb_shared", "out.hidden_shared")] {
        for i in 0..b {
            let row = |name: &str| golden.at(name).get(i);
            let real: Vec<u32> =
                (0..).zip(row("in.mask")?.to_vec1::<u8>()?).filter(|p| p.1 == 1).map(|p| p.0).collect();
            let context = row("in.context")?.index_select(&Tensor::new(real, &Device::Cpu)?, 0)?.unsqueeze(0)?;
            let rows = row(temb)?.reshape(((), 6, d))?;
            let each = rows.dim(0)? == n;
            let index = if each { Some(Tensor::arange(0u32, n as u32, &Device::Cpu)?) } else { None };
            let rope = Rope { cos: half(&row("in.rope_cos")?)?, sin: half(&row("in.rope_sin")?)? };
            let x = row("in.hidden")?.unsqueeze(0)?;
            let got = block.forward(&x, &block.keys(&context)?, &Modulation { rows, index }, Some(&rope))?;
            let part = format!(
                "transformer block, sequence {i}, {}",
                if each { "a timestep a token" } else { "one timestep" }
            );
            assert_close(&part, &got, &row(out)?.unsqueeze(0)?);
        }
    }
    Ok(())
}

/// Tables for tokens at these positions.
fn rope(positions: &[[f32; 3]], config: &TransformerConfig) -> Result<Rope> {
    let share = |p: &[f32; 3]| std::array::from_fn(|i| p[i] / config.max_pos[i]);
    let shares: Vec<[f32; 3]> = positions.iter().map(share).collect();
    Rope::new(&shares, config.width(), config.theta, &Device::Cpu)
}

#[test]
fn transformer() -> Result<()> {
    let golden = Golden::open("transformer");
    let config = TransformerConfig::parse(&golden.config(), "transformer").unwrap();
    let transformer = Transformer::load(&config, golden.weights(None))?;

    let timestep = golden.numbers("in.timestep_text");
    let (temb, emb) = transformer.time(&timestep, &Device::Cpu)?;
    assert_close("time embedding, six parts", &temb.flatten_from(1)?.unsqueeze(0)?, &golden.at("out.temb"));
    assert_close("time embedding", &emb, &golden.at("out.embedded_timestep"));
    assert_close("caption projection", &transformer.context(&golden.at("in.context"))?.text, &golden.at("out.caption"));

    let grid = Grid { frames: 3, height: 2, width: 5 };
    let (text, condition) = (positions::plain(&LTX, grid, 25.0), positions::causal(&LTX, grid, 24.0, 0));
    let coords = golden.at("in.video_coords").squeeze(0)?.t()?.to_vec2::<f32>()?;
    assert_eq!(coords, condition, "positions of the condition convention");

    let real = golden.numbers("in.mask").iter().filter(|&&m| m == 1.0).count(); // padding is at the end
    let context = transformer.context(&golden.at("in.context").narrow(1, 0, real)?)?;
    for (name, positions) in [("text", text), ("condition", condition)] {
        let rope = rope(&positions, &config)?;
        for (table, which) in [(&rope.cos, "cos"), (&rope.sin, "sin")] {
            let want = half(&golden.at(&format!("out.rope_{which}_{name}")).squeeze(0)?)?;
            assert_close(&format!("rope, {name}, {which}"), table, &want);
        }
        let timesteps = golden.numbers(&format!("in.timestep_{name}"));
        let got = transformer.forward(&golden.at("in.latents"), &context, &timesteps, &rope)?;
        assert_close(&format!("transformer, {name} convention"), &got, &golden.at(&format!("out.{name}")));
    }
    Ok(())
}

#[test]
fn rope_at_real_widths() -> Result<()> {
    let golden = Golden::open("rope");
    let config =
        |heads| TransformerConfig::parse(&json!({"num_attention_heads": heads, "cross_attention_dim": heads * 64}), "");
    let check = |part: &str, width: usize, positions: &[[f32; 3]]| -> Result<()> {
        let rope = rope(positions, &config(width / 64).unwrap())?;
        for (table, which) in [(&rope.cos, "cos"), (&rope.sin, "sin")] {
            let want = half(&golden.at(&format!("out.{part}.{which}")).squeeze(0)?)?;
            assert_within(&format!("rope {part}, {which}"), table, &want, ROPE_ERROR);
        }
        Ok(())
    };
    let coords = golden.at("in.video_coords").squeeze(0)?.t()?.to_vec2::<f32>()?;
    let coords: Vec<[f32; 3]> = coords.iter().map(|c| [c[0], c[1], c[2]]).collect();
    check("2048.condition", 2048, &coords)?;
    check("4096.condition", 4096, &coords[2..])?;

    let grid = Grid { frames: 5, height: 34, width: 60 };
    let all = positions::plain(&LTX, grid, 24.0);
    let kept = golden.at("in.grid_text").to_vec2::<i64>()?;
    let token = |at: &Vec<i64>| all[(at[0] as usize * grid.height + at[1] as usize) * grid.width + at[2] as usize];
    check("2048.text", 2048, &kept.iter().map(token).collect::<Vec<_>>())
}

fn decoder(name: &str) -> Result<()> {
    let golden = Golden::open(name);
    let latents = golden.at("in.latents").permute((0, 2, 3, 4, 1))?.contiguous()?; // (1, f, h, w, c)
    let timestep = if golden.has("in.timestep") { golden.numbers("in.timestep")[0] } else { 0.0 };
    let check = |part: &str, config: &serde_json::Value, seed: u64, out: &str| -> Result<()> {
        let config = VaeConfig::parse(config, name).unwrap();
        let decoder = Decoder::load(&config, golden.weights(None).pp("decoder"))?;
        let got = decoder.decode(&latents, timestep, Noise::new(seed))?.permute((0, 4, 1, 2, 3))?;
        assert_close(&format!("VAE decoder, {name}{part}"), &got, &golden.at(out));
        Ok(())
    };
    let mut config = golden.config();
    if golden.has("out.video_noinject") {
        check(", its noise", &config, golden.text("in.seed").parse().unwrap(), "out.video")?;
        let blocks = config["decoder_inject_noise"].as_array().unwrap().len();
        config["decoder_inject_noise"] = json!(vec![false; blocks]);
        return check(", its noise off", &config, 0, "out.video_noinject");
    }
    check("", &config, 0, "out.video")
}

#[test]
fn decoder_090() -> Result<()> {
    decoder("vae_090")
}

#[test]
fn decoder_091() -> Result<()> {
    decoder("vae_091")
}

#[test]
fn decoder_095() -> Result<()> {
    decoder("vae_095")
}

#[test]
fn decoder_tiny() -> Result<()> {
    decoder("vae_tiny")
}

/// As diffusers cuts and blends them, to f32's rounding.
#[test]
fn vae_in_tiles() -> Result<()> {
    let golden = Golden::open("vae_tiles");
    let config = VaeConfig::parse(&golden.config(), "vae_tiles").unwrap();
    let tiling = Tiling { height: 3, width: 4, overlap: 1 };
    let space = 8;

    let latents = golden.at("in.latents").permute((0, 2, 3, 4, 1))?.contiguous()?; // (1, f, h, w, c)
    let want = golden.at("out.video").permute((0, 2, 3, 4, 1))?.contiguous()?;
    let decoder = Decoder::load(&config, golden.weights(None).pp("decoder"))?;
    let timestep = golden.numbers("in.timestep")[0];
    let (_, frames, height, width, _) = want.dims5()?;
    let got = assemble(&tiling, space, [frames, height, width, 3], &|x| x, |tile, put| {
        let part = latents.narrow(2, tile.y, tile.height)?.narrow(3, tile.x, tile.width)?.contiguous()?;
        let mut first = 0;
        let chunking = Chunking { latent_frames: 1, slices: 1 };
        decoder.frames(&part, chunking, timestep, Noise::new(0), |pixels| {
            put(first, &pixels)?;
            first += pixels.dim(1)?;
            Ok::<_, candle_core::Error>(())
        })?;
        Ok(())
    })?;
    assert_close("VAE decoder in tiles", &Tensor::from_vec(got, want.shape(), &Device::Cpu)?, &want);

    let pixels = golden.at("in.pixels").permute((0, 2, 3, 4, 1))?.contiguous()?;
    let want = golden.at("out.moments").permute((0, 2, 3, 4, 1))?.contiguous()?;
    let encoder = Encoder::load(&config, golden.weights(None).pp("encoder"))?;
    let (_, f, h, w, _) = want.dims5()?;
    let c = config.latent_channels;
    let got = assemble(&tiling, 1, [f, h, w, c + 1], &|x| x, |tile, put| {
        let part = pixels.narrow(2, tile.y * space, tile.height * space)?;
        let part = part.narrow(3, tile.x * space, tile.width * space)?;
        put(0, &encoder.moments(pixels.dim(1)?, 1, |first, count| part.narrow(1, first, count), |_| Ok(()))?)
    })?;
    let got = Tensor::from_vec(got, (1, f, h, w, c + 1), &Device::Cpu)?;
    // one log-variance for all channels, which the reference repeats
    assert_close("VAE encoder in tiles", &got, &want.narrow(4, 0, c + 1)?.contiguous()?);
    Ok(())
}

fn encoder(name: &str) -> Result<()> {
    let golden = Golden::open(name);
    let config = VaeConfig::parse(&golden.config(), name).unwrap();
    let encoder = Encoder::load(&config, golden.weights(None).pp("encoder"))?;
    let pixels = golden.at("in.pixels").permute((0, 2, 3, 4, 1))?.contiguous()?; // (1, frames, H, W, 3)
    let want = golden.at("out.moments").permute((0, 2, 3, 4, 1))?.contiguous()?; // means, then log-variances
    let c = config.latent_channels;
    for group in [1, 2, 99] {
        let got = encoder.encode(&pixels, group, |_| {})?;
        let part = format!("VAE encoder, {name}, groups of {group}");
        assert_close(&format!("{part}, mean"), &got.mean, &want.narrow(4, 0, c)?.contiguous()?);
        assert_close(&format!("{part}, log-variance"), &got.log_variance, &want.narrow(4, c, 1)?.contiguous()?);
    }
    Ok(())
}

#[test]
fn encoder_090() -> Result<()> {
    encoder("vae_090")
}

#[test]
fn encoder_091() -> Result<()> {
    encoder("vae_091")
}

#[test]
fn encoder_095() -> Result<()> {
    encoder("vae_095")
}

#[test]
fn encoder_tiny() -> Result<()> {
    encoder("vae_tiny")
}

/// Largest errors of diffusers 0.42.1 itself when it runs these goldens in bf16, relative as the others: of the encoder's moments,
/// and of the decoder's video, which 0.9.1 draws noise for in between. In bf16 nothing may lie farther off.
const IN_BF16: [(&str, f32, Option<f32>); 4] = [
    ("vae_090", 1.07e-2, Some(1.19e-2)),
    ("vae_091", 7.4e-3, None),
    ("vae_095", 1.11e-2, Some(1.95e-2)),
    ("vae_tiny", 3.8e-3, Some(1.38e-2)),
];

#[test]
fn vae_in_bf16() -> Result<()> {
    for (name, moments, video) in IN_BF16 {
        let golden = Golden::open(name);
        let (config, weights) = (VaeConfig::parse(&golden.config(), name).unwrap(), golden.weights(Some(DType::BF16)));
        let at = |name: &str| golden.at(name).permute((0, 2, 3, 4, 1))?.contiguous(); // (1, f, h, w, c)
        let (pixels, want) = (at("in.pixels")?, at("out.moments")?);
        let encoder = Encoder::load(&config, weights.pp("encoder"))?;
        let got = encoder.moments(pixels.dim(1)?, 99, |first, count| pixels.narrow(1, first, count), |_| Ok(()))?;
        // one log-variance for all channels, which the reference repeats
        let want = want.narrow(4, 0, config.latent_channels + 1)?.contiguous()?;
        assert_within(&format!("VAE encoder in bf16, {name}"), &got, &want, moments);
        let Some(limit) = video else { continue };
        let timestep = if golden.has("in.timestep") { golden.numbers("in.timestep")[0] } else { 0.0 };
        let got = Decoder::load(&config, weights.pp("decoder"))?.decode(&at("in.latents")?, timestep, Noise::new(0))?;
        assert_within(&format!("VAE decoder in bf16, {name}"), &got, &at("out.video")?, limit);
    }
    Ok(())
}

fn scheduler(golden: &Golden, name: &str) -> SchedulerConfig {
    SchedulerConfig::parse(&golden.config()[name], name).unwrap()
}

/// The shift by tokens of 0.9.0 and 0.9.1.
fn by_tokens(golden: &Golden, tokens: usize) -> Shift {
    let config = scheduler(golden, "dynamic");
    Shift::by_tokens(tokens, config.dynamic.unwrap(), config.terminal)
}

#[test]
fn schedules() -> Result<()> {
    let golden = Golden::open("schedules");
    let check = |name: &str, got: Schedule| -> Result<()> {
        let sigmas: Vec<f32> = got.sigmas.iter().map(|&s| s as f32).collect();
        for (part, got) in [("sigmas", sigmas), ("timesteps", got.timesteps)] {
            let want = golden.at(&format!("out.{name}.{part}"));
            assert_within(&format!("schedule {name}, {part}"), &Tensor::new(got, &Device::Cpu)?, &want, LEVEL_ERROR);
        }
        Ok(())
    };
    for (tokens, steps) in [(18, 6), (384, 6), (8064, 8), (7392, 50)] {
        let shift = by_tokens(&golden, tokens);
        let mu = golden.at(&format!("out.dynamic_{tokens}_{steps}.mu")).to_vec1::<f64>()?[0];
        assert!((shift.shift.ln() - mu).abs() < 1e-14, "{tokens} tokens: log shift {} and not {mu}", shift.shift.ln());
        check(&format!("dynamic_{tokens}_{steps}"), Schedule::linear(steps, &shift))?;
    }
    for name in ["plain", "shift3"] {
        let config = scheduler(&golden, name);
        assert_eq!(config.dynamic, None);
        check(&format!("{name}_5"), Schedule::linear(5, &Shift { shift: config.shift, terminal: config.terminal }))?;
    }
    for steps in [1, 2, 3, 4, 5, 8, 30, 40] {
        check(&format!("linear_quadratic_{steps}"), Schedule::linear_quadratic(steps, &Shift::NONE))?;
    }
    check("explicit", Schedule::explicit(&[1.0, 0.993, 0.987, 0.981, 0.975, 0.909, 0.725, 0.00003]).unwrap())
}

#[test]
fn euler_steps() -> Result<()> {
    let golden = Golden::open("schedules");
    let [x, v] = ["latents", "velocity"].map(|name| golden.at(&format!("in.plain.{name}")));
    let schedule = Schedule::linear(6, &by_tokens(&golden, 18));
    for i in [0, 2, 5] {
        let got = euler(&x, &v, schedule.sigmas[i], schedule.sigmas[i + 1]).unwrap();
        assert_close(&format!("Euler step {i}"), &got, &golden.at(&format!("out.plain.step_{i}")));
    }
    Ok(())
}

#[test]
fn steps_of_conditioned_tokens() -> Result<()> {
    let golden = Golden::open("schedules");
    let schedule = Schedule::linear_quadratic(8, &Shift::NONE);
    let tokens = Tokens {
        latents: golden.at("in.per_token.init"),
        strengths: golden.numbers("in.per_token.mask"),
        positions: vec![],
        extra: 0,
    };
    let (latents, velocity) = (golden.at("in.per_token.latents"), golden.at("in.per_token.velocity"));
    for i in [3, 6, 7] {
        let timesteps = tokens.timesteps(schedule.timesteps[i]);
        assert_eq!(timesteps, golden.numbers(&format!("out.per_token.timestep_{i}")), "step {i}");
        let got = tokens.step(&latents, &velocity, &schedule.sigmas, i, &timesteps, None).unwrap();
        assert_close(&format!("step {i} of conditioned tokens"), &got, &golden.at(&format!("out.per_token.step_{i}")));
        let got = tokens.with_noise(&latents, 0.15, schedule.sigmas[i], &mut Noise::new(5)).unwrap();
        assert_close(
            &format!("noise on held tokens, step {i}"),
            &got,
            &golden.at(&format!("out.per_token.noised_{i}")),
        );
    }
    Ok(())
}

#[test]
fn guidance() -> Result<()> {
    let golden = Golden::open("schedules");
    for (rescale, out) in [(0.0, "guided_plain"), (0.7, "guided")] {
        let guidance = Guidance { scale: 3.5, rescale, star: false, stg: 0.0, stg_blocks: &[] };
        let got = guidance.combine(&golden.at("in.cond"), Some(&golden.at("in.uncond")), None).unwrap();
        assert_close(&format!("guidance, rescale {rescale}"), &got, &golden.at(&format!("out.{out}")));
    }
    Ok(())
}
