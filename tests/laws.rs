//! What has to hold whatever the numbers are.

use crate::common::{Clip, Golden, Scratch, assert_close, generate, golden_path, numbers, reel, run};
use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use reel::job::geometry::{Geometry, Grid};
use reel::job::windows::ChannelStatistics;
use reel::models::ltx::config::{TransformerConfig, VaeConfig};
use reel::models::ltx::positions;
use reel::models::ltx::transformer::{Block, Modulation, Transformer};
use reel::models::ltx::vae::{Decoder, Encoder};
use reel::models::text::t5::{T5, T5Config};
use reel::nn::rope::Rope;
use reel::nn::stream::Chunking;
use reel::nn::vars::{Source, Vars};
use reel::platform::cancel::{Cancel, Cancelled};
use reel::sampling::noise::Noise;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A small clip of the embedded model.
const SMALL: [&str; 10] = ["--size", "48x32", "--frames", "9", "--steps", "3", "--seed", "7", "--guidance", "3"];

fn tiny(flags: &[&str]) -> Clip {
    generate("tiny", "a red ball on the sand", &[&SMALL, flags].concat())
}

/// Bits, so that equal means equal.
fn bits(x: &Tensor) -> Vec<u32> {
    numbers(x).iter().map(|v| v.to_bits()).collect()
}

#[test]
fn decoding_in_groups_equals_decoding_at_once() -> Result<()> {
    for name in ["vae_090", "vae_091", "vae_095", "vae_tiny"] {
        let golden = Golden::open(name);
        let config = VaeConfig::parse(&golden.config(), name).unwrap();
        let decoder = Decoder::load(&config, golden.weights(None).pp("decoder"))?;
        let latents = golden.at("in.latents").permute((0, 2, 3, 4, 1))?.contiguous()?;
        let whole = decoder.decode(&latents, 0.05, Noise::new(7))?;
        for (group, parts) in [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 8), (2, 3), (4, 5)] {
            let mut made = vec![];
            decoder.frames(
                &latents,
                Chunking { latent_frames: group, slices: parts },
                0.05,
                Noise::new(7),
                |frames| {
                    made.push(frames);
                    Ok::<_, candle_core::Error>(())
                },
            )?;
            let made = Tensor::cat(&made, 1)?;
            assert_eq!(made.dims(), whole.dims());
            assert!(bits(&made) == bits(&whole), "{name} in groups of {group}, {parts} parts");
        }
    }
    Ok(())
}

#[test]
fn prompts_together_are_prompts_apart() -> Result<()> {
    let golden = Golden::open("t5");
    let config = T5Config::parse(&golden.config(), "t5").unwrap();
    let encoder = T5::load(&config, golden.weights(None))?;
    let prompts: Vec<Vec<u32>> = vec![vec![5, 17, 2, 1], vec![3, 1], (2..40).collect()];
    let mut calls = 0;
    let together = encoder.encode_each(&prompts, || {
        calls += 1;
        Ok(())
    })?;
    assert_eq!(calls, config.layers * prompts.len());
    for (ids, together) in prompts.iter().zip(&together) {
        assert!(bits(&encoder.encode(ids, || ())?) == bits(together), "{} ids", ids.len());
        assert!(bits(&encoder.encode_with(ids, &encoder.layers()?)?) == bits(together), "{} ids", ids.len());
    }
    Ok(())
}

#[test]
fn one_thread_or_two_give_the_same_bytes() {
    let scratch = Scratch::new("threads");
    let file = if cfg!(feature = "h264") { "clip.mp4" } else { "clip.webp" };
    let bytes = |threads: &str| {
        let out = scratch.path(&format!("{threads}-{file}"));
        let flags = ["generate", "a boat", "--model", "tiny", "--threads", threads, "--out", &out];
        reel(&[&flags[..], &SMALL].concat());
        std::fs::read(out).unwrap()
    };
    assert!(bytes("1") == bytes("2"), "{file}");
    assert!(tiny(&["--threads", "1"]) == tiny(&["--threads", "2"]), "frames");
}

#[test]
fn tiles_larger_than_the_picture_are_no_tiles() {
    let whole = tiny(&["--vae-tile", "none"]);
    assert!(tiny(&[]) == whole && tiny(&["--vae-tile", "64x48"]) == whole, "one tile");
    let tiled = tiny(&["--vae-tile", "32x32", "--vae-overlap", "16"]);
    assert!(tiled != whole, "tiles have no effect");
    // blended, not torn: this is a smooth picture of 48 x 32, in tiles that see two thirds of it
    let apart = tiled.frames.iter().flatten().zip(whole.frames.iter().flatten()).map(|(a, b)| a.abs_diff(*b) as u64);
    let (sum, count) = apart.fold((0, 0u64), |(sum, count), d| (sum + d, count + 1));
    assert!(sum < 12 * count, "{} of 255 apart on average", sum as f64 / count as f64);
}

/// Long enough for its frames to take less memory in groups than at once.
const LONG: [&str; 10] = ["--size", "48x32", "--frames", "41", "--steps", "3", "--seed", "7", "--guidance", "3"];

/// What the plan of a long clip says with `flags`, whether it fits or not.
fn plan(flags: &[&str]) -> Value {
    let all = [&["generate", "a red ball on the sand", "--model", "tiny", "--dry-run", "--json"], &LONG[..], flags];
    serde_json::from_slice(&run(&all.concat()).stdout).unwrap()
}

#[test]
fn less_memory_gives_the_same_frames() {
    let plenty = plan(&[]);
    let most = plenty["memory"].as_u64().unwrap();
    // blocks that do not stay, and frames in smaller groups, change nothing; tiles are not allowed to help
    let least = (0..).map(|i| most - i * (most / 200)).take(60).filter(|bytes| {
        let plan = plan(&["--vae-tile", "none", "--memory", &bytes.to_string()]);
        plan["fits"] == true && plan["memory"].as_u64().unwrap() <= *bytes
    });
    let least = least.min().unwrap().to_string();
    let flags = ["--vae-tile", "none", "--memory", &least];
    let cut = plan(&flags);
    assert!(cut["resident_blocks"].as_u64() < cut["blocks"].as_u64(), "{cut}");
    assert!(cut["decode"]["latent_frames"].as_u64() < plenty["decode"]["latent_frames"].as_u64(), "{cut}");
    let long = |flags: &[&str]| generate("tiny", "a red ball on the sand", &[&LONG, flags].concat());
    assert!(long(&flags) == long(&[]));
}

#[test]
fn a_seed_decides_the_clip() {
    let first = tiny(&[]);
    assert!(first == tiny(&[]), "the same seed, another clip");
    let other =
        generate("tiny", "a red ball on the sand", &[&SMALL[..6], &["--seed", "8", "--guidance", "3"]].concat());
    assert!(first != other, "another seed, the same clip");
}

#[test]
fn an_odd_size_is_the_middle_of_a_legal_one() {
    let clip = |size: &str, frames: &str| {
        generate("tiny", "a boat", &["--size", size, "--frames", frames, "--steps", "2", "--seed", "3"])
    };
    let (odd, legal) = (clip("60x50", "10"), clip("64x64", "13"));
    assert_eq!((odd.width, odd.height, odd.frames.len()), (60, 50, 10));
    assert_eq!((legal.width, legal.height, legal.frames.len()), (64, 64, 13));
    for (odd, legal) in odd.frames.iter().zip(&legal.frames) {
        let middle: Vec<u8> =
            legal.chunks(64 * 3).skip(7).take(50).flat_map(|row| &row[2 * 3..][..60 * 3]).copied().collect();
        assert!(*odd == middle);
    }
}

#[test]
fn raw_video_has_every_frame() {
    let video = reel(&[&["generate", "a boat", "--model", "tiny", "--out", "-"], &SMALL[..]].concat()).stdout;
    let end = video.iter().position(|&b| b == b'\n').unwrap() + 1;
    let header = String::from_utf8_lossy(&video[..end]);
    assert!(header.starts_with("YUV4MPEG2 W48 H32 "), "{header}");
    let planes: usize = if header.contains(" C444") { 48 * 32 * 3 } else { 48 * 32 * 3 / 2 };
    let frames: Vec<&[u8]> = video[end..].chunks(b"FRAME\n".len() + planes).collect();
    assert_eq!(frames.len(), 9);
    assert!(frames.iter().all(|f| f.starts_with(b"FRAME\n") && f.len() == 6 + planes));
}

/// The embedded model is stored in f16; on a CPU that decides the memory and not the numbers.
#[test]
fn weights_stored_in_half_give_the_frames_of_wide_ones() {
    assert!(tiny(&["--device", "cpu"]) == tiny(&["--device", "cpu", "--dtype", "f32"]));
}

/// A golden's single file, its parts as a diffusers directory, and that directory packed again.
#[test]
fn a_packed_file_equals_its_directory() {
    for name in ["pipeline_090", "pipeline_091", "pipeline_095"] {
        let scratch = Scratch::new(name);
        let (dir, packed) = (scratch.path("model"), scratch.path("packed.safetensors"));
        unpack(name, Path::new(&dir));
        reel(&["models", "pack", &dir, "--out", &packed]);
        let clip = |model: &str| {
            generate(model, "a boat", &["--size", "32x16", "--frames", "9", "--steps", "2", "--seed", "5"])
        };
        let from_directory = clip(&dir);
        assert!(from_directory == clip(&packed), "{name} packed");
        assert!(from_directory == clip(golden_path(name).to_str().unwrap()), "{name} as it was made");
    }
}

fn unpack(name: &str, dir: &Path) {
    let golden = Golden::open(name);
    let all = candle_core::safetensors::load(golden_path(name), &Device::Cpu).unwrap();
    let config = golden.config();
    let write = |folder: &str, file: &str, text: &str| {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
        std::fs::write(dir.join(folder).join(file), text).unwrap();
    };
    let parts = [
        ("transformer", "model.diffusion_model.", "diffusion_pytorch_model.safetensors"),
        ("vae", "vae.", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "text_encoder.", "model.safetensors"),
    ];
    for (part, prefix, file) in parts {
        write(part, "config.json", &config[part].to_string());
        let own =
            all.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor.clone())));
        candle_core::safetensors::save(&own.collect::<HashMap<_, _>>(), dir.join(part).join(file)).unwrap();
    }
    write("scheduler", "scheduler_config.json", &config["scheduler"].to_string());
    write("tokenizer", "tokenizer.json", golden.text("tokenizer"));
    let class = if name == "pipeline_095" { "LTXConditionPipeline" } else { "LTXPipeline" };
    write("", "model_index.json", &serde_json::json!({ "_class_name": class }).to_string());
}

#[test]
fn equal_timesteps_a_token_equal_one_for_all() -> Result<()> {
    let golden = Golden::open("transformer");
    let config: Value = golden.config();
    let config = TransformerConfig::parse(&config, "transformer").unwrap();
    let transformer = Transformer::load(&config, golden.weights(None))?;
    let x = golden.at("in.latents");
    let n = x.dim(1)?;
    let context = transformer.context(&golden.at("in.context"))?;
    let positions = positions::plain(&Geometry { time: 8, space: 32 }, Grid { frames: 3, height: 2, width: 5 }, 25.0);
    let shares: Vec<[f32; 3]> = positions.iter().map(|p| [p[0] / 20.0, p[1] / 2048.0, p[2] / 2048.0]).collect();
    let rope = Rope::new(&shares, config.width(), config.theta, &Device::Cpu)?;
    let each = transformer.forward(&x, &context, &vec![731.25; n], &rope)?;
    assert!(bits(&each) == bits(&transformer.forward(&x, &context, &[731.25], &rope)?), "whole transformer");

    // keys and values of the prompt were there already, the second time
    let fresh = transformer.context(&golden.at("in.context"))?;
    assert!(
        bits(&each) == bits(&transformer.forward(&x, &fresh, &[731.25], &rope)?),
        "a prompt met for the first time"
    );

    // the whole transformer sees that they are equal; a block does not
    let block = Block::load(&config, golden.weights(None).pp("transformer_blocks.1"))?;
    let h = Tensor::from_vec(Noise::new(1).normal(n * config.width()), (1, n, config.width()), &Device::Cpu)?;
    let (rows, _) = transformer.time(&[731.25], &Device::Cpu)?;
    let keys = block.keys(&context.text)?;
    let forward = |index| block.forward(&h, &keys, &Modulation { rows: rows.clone(), index }, Some(&rope));
    let each = forward(Some(Tensor::zeros(n, DType::U32, &Device::Cpu)?))?;
    assert!(bits(&each) == bits(&forward(None)?), "one block");
    Ok(())
}

/// A step over a long clip takes minutes.
#[test]
fn a_step_is_stopped_between_two_blocks() -> Result<()> {
    let golden = Golden::open("transformer");
    let config = TransformerConfig::parse(&golden.config(), "transformer").unwrap();
    let x = golden.at("in.latents");
    let positions = positions::plain(&Geometry { time: 8, space: 32 }, Grid { frames: 3, height: 2, width: 5 }, 25.0);
    let rope = Rope::new(&positions, config.width(), config.theta, &Device::Cpu)?;
    for resident in [0, config.layers] {
        let model = Transformer::load_part(&config, golden.weights(None), resident)?;
        let text = golden.at("in.context");
        let run = |cancel: &Cancel| model.forward_without(&[], &x, &model.context(&text)?, &[700.0], &rope, cancel);
        let cancel = Cancel::default();
        let first = bits(&run(&cancel)?);
        cancel.cancel();
        assert!(Cancelled::caused(&run(&cancel).unwrap_err().into()), "{resident} blocks in memory");
        assert!(bits(&run(&Cancel::default())?) == first, "{resident} blocks in memory");
    }
    Ok(())
}

#[test]
fn a_window_as_long_as_the_clip_is_no_window() {
    let whole = tiny(&[]);
    for window in ["9", "33"] {
        assert!(whole.frames == tiny(&["--window", window]).frames, "--window {window}");
    }
    assert!(whole.frames != tiny(&["--window", "5"]).frames);
}

#[test]
fn drift_is_matched_between_windows_alone() -> Result<()> {
    assert!(tiny(&[]).frames == tiny(&["--no-drift-match"]).frames, "one window drifts from nothing");
    assert!(tiny(&["--window", "5"]).frames != tiny(&["--window", "5", "--no-drift-match"]).frames);

    // what is brought to the statistics of others has them
    let values = |seed: u64, scale: f64| -> Result<Tensor> {
        let x = Tensor::from_vec(Noise::new(seed).normal(40 * 3), (1, 40, 3), &Device::Cpu)?;
        (x * scale)? + scale
    };
    let (first, later) = (values(1, 0.5)?, values(2, 3.0)?);
    let imposed = ChannelStatistics::of(&first).unwrap().impose(&later).unwrap();
    let deviation = |x: &Tensor| x.broadcast_sub(&x.mean_keepdim(1)?)?.sqr()?.mean(1)?.sqrt();
    assert_close("means", &imposed.mean(1)?, &first.mean(1)?);
    assert_close("deviations", &deviation(&imposed)?, &deviation(&first)?);
    Ok(())
}

/// A scene depends on its own prompt and on how long the others are, and on nothing else of them.
#[test]
fn scenes_do_not_see_each_other() {
    let scenes = |first: &str, second: &str| {
        let flags =
            ["--size", "48x32", "--frames", "18", "--steps", "2", "--seed", "7", "--prompt-at", "1.125", second];
        generate("tiny", first, &flags).frames
    };
    let (a, b, c) = ("a red ball on the sand", "a blue star at night", "a green car on grass");
    let (ab, ac, cb) = (scenes(a, b), scenes(a, c), scenes(c, b));
    assert!(ab.len() == 18 && ab[..9] == ac[..9] && ab[9..] != ac[9..], "the second prompt");
    assert!(ab[9..] == cb[9..] && ab[..9] != cb[..9], "the first prompt");
}

/// A golden's weights as variables, each made when a layer first asks for it.
#[derive(Clone)]
struct Trained {
    given: Arc<Golden>,
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl Trained {
    fn new(golden: Golden) -> Self {
        Self { given: Arc::new(golden), vars: Arc::default() }
    }

    fn weights(&self) -> Vars {
        Vars::new(self.clone(), DType::F32, Device::Cpu)
    }

    /// Takes every variable a step down the mean square of `y`. Returns the names of those that have no gradient.
    fn step(&self, y: &Tensor) -> Result<Vec<String>> {
        let grads = y.sqr()?.mean_all()?.backward()?;
        let mut without = vec![];
        for (name, var) in self.vars.lock().unwrap().iter() {
            match grads.get(var) {
                Some(grad) => var.set(&(var.as_tensor() - (grad * 0.5)?)?.detach())?,
                None => without.push(name.clone()),
            }
        }
        Ok(without)
    }
}

impl Source for Trained {
    fn get(&self, shape: &Shape, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        let mut vars = self.vars.lock().unwrap();
        if !vars.contains_key(name) {
            let value = self.given.at(&format!("weights.{name}")).to_dtype(DType::F32)?.reshape(shape)?;
            vars.insert(name.to_string(), Var::from_tensor(&value)?);
        }
        Ok(vars[name].as_tensor().clone())
    }

    fn contains(&self, name: &str) -> bool {
        self.given.has(&format!("weights.{name}"))
    }
}

/// After a step a network that was loaded before it answers as one that is loaded after it: nothing is kept that was made of the
/// weights before.
fn follows(
    what: &str,
    trained: &Trained,
    run: impl Fn() -> Result<Tensor>,
    again: impl Fn() -> Result<Tensor>,
    frozen: &[&str],
) -> Result<()> {
    let before = run()?;
    let without = trained.step(&before)?;
    let trained: Vec<&String> = without.iter().filter(|name| !frozen.iter().any(|f| name.contains(f))).collect();
    assert!(trained.is_empty(), "{what}: no gradient of {trained:?}");
    let (after, fresh) = (run()?, again()?);
    assert!(bits(&after) != bits(&before), "{what}: the step changed nothing");
    assert!(bits(&after) == bits(&fresh), "{what}: something is left of the weights before the step");
    Ok(())
}

#[test]
fn layers_follow_weights_that_are_trained() -> Result<()> {
    let trained = Trained::new(Golden::open("transformer"));
    let golden = Golden::open("transformer");
    let config = TransformerConfig::parse(&golden.config(), "transformer").unwrap();
    let (x, text) = (golden.at("in.latents"), golden.at("in.context"));
    let coords: Vec<[f32; 3]> = (0..x.dim(1)?).map(|i| [i as f32 / 50.0, 0.2, 0.7]).collect();
    let rope = Rope::new(&coords, config.width(), config.theta, &Device::Cpu)?;
    let open = || Transformer::load(&config, trained.weights());
    let model = open()?;
    let run = |model: &Transformer| model.forward(&x, &model.context(&text)?, &[700.0], &rope);
    follows("transformer", &trained, || run(&model), || run(&open()?), &[])?;

    for name in ["vae_090", "vae_091", "vae_095"] {
        let golden = Golden::open(name);
        let config = VaeConfig::parse(&golden.config(), name).unwrap();
        let latents = golden.at("in.latents").permute((0, 2, 3, 4, 1))?.contiguous()?.narrow(0, 0, 1)?;
        let trained = Trained::new(golden);
        let open = || Decoder::load(&config, trained.weights().pp("decoder"));
        let decoder = open()?;
        let run = |decoder: &Decoder| decoder.decode(&latents, 0.05, Noise::new(7));
        follows(name, &trained, || run(&decoder), || run(&open()?), &["timestep_scale_multiplier"])?;
        let pixels = run(&decoder)?.detach();
        let open = || Encoder::load(&config, trained.weights().pp("encoder"));
        let encoder = open()?;
        let run = |encoder: &Encoder| Ok::<_, candle_core::Error>(encoder.encode(&pixels, 2, |_| ())?.mean);
        follows(name, &trained, || run(&encoder), || run(&open()?), &["decoder.", "latents_", "timestep_scale"])?;
    }
    Ok(())
}
