//! Models that are unknown, absent, no checkpoint, broken, or do not fit together.

use super::common::*;
use serde_json::{Value, json};

/// A model that cannot be opened: nothing is written, and the error says why.
fn no_model(scratch: &Scratch, model: &str, words: &[&str]) {
    refused(scratch, &["generate", "a red ball", "--seed", "7", "-o", "a.gif", "--model", model], words);
}

#[test]
fn names_and_paths_that_lead_nowhere() {
    let scratch = Scratch::new();
    no_model(&scratch, "tyni", &["`tyni`", "did you mean `tiny`", "models: `tiny`, `tiny-128`, `ltx", "fix:"]);
    no_model(&scratch, "ltx-2b-0.9.6", &["unknown model", "`ltx-2b-0.9.6-dev`", "fix:"]);
    no_model(&scratch, "t5-xxl-fp16", &["--text-encoder", "fix:"]);
    no_model(&scratch, "ltx-2b-0.9.1", &["5.72 GB", "9.79 GB", "licence", "reel models pull ltx-2b-0.9.1", "--pull"]);
    no_model(&scratch, "no/such/folder", &["`no/such/folder`", "fix:"]);
    no_model(&scratch, "nothing.safetensors", &["`nothing.safetensors`", "fix:"]);
    no_model(&scratch, "", &["fix:"]);
    refused(
        &scratch,
        &["generate", "x", "--text-encoder", "nowhere"],
        &["no text encoder at `nowhere`", "--text-encoder"],
    );
    refused(
        &scratch,
        &["generate", "x", "--text-encoder", "t5-xxl-q6_k"],
        &["`t5-xxl-q6_k` is not here (3.91 GB, licence: Apache-2.0)", "reel models pull t5-xxl-q6_k"],
    );
    refused(&scratch, &["models", "path", "ltx-2b-0.9.9"], &["unknown name", "did you mean `ltx-2b-0.9"]);
    refused(&scratch, &["generate", "x", "--tokenizer", "nowhere"], &["`nowhere`", "tokenizer.json", "--tokenizer"]);
}

#[test]
fn files_that_are_no_whole_checkpoint() {
    let scratch = Scratch::new();
    let tiny = reel::embedded::TINY;
    let header = 8 + u64::from_le_bytes(tiny[..8].try_into().unwrap()) as usize;
    let long = |n: u64| [&n.to_le_bytes()[..], &tiny[8..]].concat();
    let garbage = |at: usize| {
        let mut file = tiny.to_vec();
        file[at..at + 400].fill(b'#');
        file
    };
    let files: [(&str, Vec<u8>); 14] = [
        ("empty", vec![]),
        ("text", b"this is no checkpoint at all, only a line of text\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("cut-in-length", tiny[..5].to_vec()),
        ("cut-after-length", tiny[..8].to_vec()),
        ("cut-in-header", tiny[..header / 2].to_vec()),
        ("cut-after-header", tiny[..header].to_vec()),
        ("cut-in-the-middle", tiny[..tiny.len() / 2].to_vec()),
        ("cut-at-the-end", tiny[..tiny.len() - 1].to_vec()),
        ("one-byte-more", [tiny, b"x"].concat()),
        ("garbage-at-the-start", garbage(8)),
        ("garbage-in-the-header", garbage(header / 2)),
        ("length-beyond-the-file", long(tiny.len() as u64)),
        ("huge-length", long(u64::MAX)),
    ];
    for (name, bytes) in files {
        let path = scratch.write(&format!("{name}.safetensors"), bytes);
        no_model(&scratch, path.to_str().unwrap(), &[name, "not a whole safetensors or GGUF file", "fix:"]);
        // the same where only text is wanted
        refused(&scratch, &["generate", "x", "--text-encoder", path.to_str().unwrap()], &[name, "fix:"]);
        std::fs::remove_file(path).unwrap();
    }
    let nothing = scratch.write("nothing.safetensors", [&2u64.to_le_bytes()[..], b"{}"].concat());
    no_model(&scratch, nothing.to_str().unwrap(), &["nothing.safetensors", "no transformer"]);
    no_model(&scratch, scratch.0.to_str().unwrap(), &["not a checkpoint", "`transformer/`", "fix:"]);
    if cfg!(unix) {
        no_model(&scratch, "/dev/null", &["/dev/null", "fix:"]);
    }
}

/// Changes one value of the header's configuration, by its JSON pointer; null in `value` removes it.
fn with_config(pointer: &str, value: Value) -> Model {
    let mut model = Model::tiny();
    let mut config = model.config();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(key);
    } else {
        parent.insert(key.to_string(), value);
    }
    model.set_config(&config);
    model
}

#[test]
fn configurations_that_reel_does_not_know() {
    let cases = [
        ("/transformer/gated_attention", json!(true), &["unknown key `gated_attention`", "config.transformer"][..]),
        ("/vae/mystery", json!(1), &["unknown key `mystery`", "config.vae"]),
        ("/scheduler/mystery", json!(1), &["unknown key `mystery`", "config.scheduler"]),
        ("/text_encoder/mystery", json!(1), &["unknown key `mystery`", "config.text_encoder"]),
        ("/mystery", json!(1), &["unknown key `mystery`"]),
        ("/transformer", json!(null), &["`transformer` is missing"]),
        ("/vae", json!([1, 2]), &["config.vae"]),
        ("/transformer/num_layers", json!("eight"), &["`num_layers`", "eight"]),
        ("/transformer/num_layers", json!(-8), &["`num_layers`", "-8"]),
        ("/transformer/num_layers", json!(0), &["`num_layers`", "0"]),
        ("/transformer/num_layers", json!(4_000_000_000u64), &["`num_layers`", "4000000000"]),
        ("/transformer/num_layers", json!(9), &["transformer_blocks.8", "missing"]),
        ("/transformer/attention_head_dim", json!(9_000_000_000_000_000_000u64), &["`attention_head_dim`"]),
        ("/transformer/num_attention_heads", json!(5), &["cross_attention_dim"]),
        ("/transformer/num_attention_heads", json!(0), &["`num_attention_heads`"]),
        ("/transformer/activation_fn", json!("relu"), &["`activation_fn`", "relu", "gelu-approximate"]),
        ("/transformer/patch_size", json!(2), &["`patch_size`"]),
        ("/transformer/in_channels", json!(64), &["64", "latent channels"]),
        ("/transformer/caption_channels", json!(256), &["256", "--text-encoder"]),
        ("/transformer/norm_eps", json!("tiny"), &["`norm_eps`"]),
        ("/transformer/positional_embedding_max_pos", json!([0, 0, 0]), &["`positional_embedding_max_pos`"]),
        ("/transformer/positional_embedding_theta", json!(-1), &["`positional_embedding_theta`"]),
        ("/vae/_class_name", json!("AutoencoderKLWan"), &["AutoencoderKLWan", "AutoencoderKLLTXVideo"]),
        ("/vae/_class_name", json!(null), &["`_class_name`", "missing"]),
        ("/vae/latent_channels", json!(64), &["latent channels", "64"]),
        ("/vae/patch_size", json!(0), &["`patch_size`"]),
        ("/vae/patch_size", json!(8), &["conv_out", "has shape"]),
        ("/vae/patch_size", json!(4_000_000_000u64), &["`patch_size`"]),
        ("/vae/downsample_type", json!(["spatial"]), &["`downsample_type`"]),
        ("/vae/downsample_type", json!(["spatial", "sideways"]), &["`downsample_type`", "sideways"]),
        ("/vae/down_block_types", json!(["Other", "Other"]), &["`down_block_types`", "Other"]),
        ("/vae/down_block_types", json!([]), &["`down_block_types`"]),
        ("/vae/block_out_channels", json!([]), &["config.vae"]),
        ("/vae/layers_per_block", json!([]), &["`layers_per_block`"]),
        ("/vae/layers_per_block", json!([1, 1, 1_000_000_000]), &["`layers_per_block`"]),
        ("/vae/decoder_block_out_channels", json!([]), &["config.vae"]),
        ("/vae/decoder_block_out_channels", json!([64, 0]), &["config.vae"]),
        ("/vae/decoder_layers_per_block", json!([2, 1, 4_000_000_000u64]), &["`decoder_layers_per_block`"]),
        ("/vae/upsample_factor", json!([2, 0]), &["`upsample_factor`"]),
        ("/vae/upsample_factor", json!([2, 3]), &["config.vae"]),
        ("/vae/timestep_conditioning", json!(true), &["time_embedder"]),
        ("/scheduler/_class_name", json!("DDIMScheduler"), &["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"]),
        ("/scheduler/use_karras_sigmas", json!(true), &["`use_karras_sigmas`"]),
        ("/scheduler/shift", json!(-1), &["`shift`"]),
        ("/scheduler/shift_terminal", json!(1), &["`shift_terminal`"]),
        ("/scheduler/max_image_seq_len", json!(256), &["`max_image_seq_len`"]),
        ("/allowed_inference_steps", json!([0.1, 0.9]), &["config.allowed_inference_steps", "fall"]),
        ("/text_encoder/d_model", json!(256), &["256", "--text-encoder"]),
        ("/text_encoder/num_layers", json!(3_000_000_000u64), &["`num_layers`"]),
        ("/text_encoder/num_heads", json!(0), &["`num_heads`"]),
        ("/text_encoder/d_kv", json!(0), &["`d_kv`"]),
        ("/text_encoder/relative_attention_num_buckets", json!(1), &["relative_attention_num_buckets"]),
        ("/text_encoder/feed_forward_proj", json!("relu"), &["`feed_forward_proj`", "relu"]),
        ("/text_encoder/vocab_size", json!(100), &["538", "100", "--tokenizer"]),
    ];
    let scratch = Scratch::new();
    each(&cases, |(pointer, value, words)| {
        println!("{pointer} = {value}");
        let path = scratch.write("m.safetensors", with_config(pointer, value.clone()).bytes());
        no_model(&scratch, path.to_str().unwrap(), words);
    });
}

#[test]
fn tensors_that_do_not_fit() {
    let scratch = Scratch::new();
    let broken = |edit: &dyn Fn(&mut Model), words: &[&str]| {
        println!("{words:?}");
        let mut model = Model::tiny();
        edit(&mut model);
        let path = scratch.write("m.safetensors", model.bytes());
        no_model(&scratch, path.to_str().unwrap(), words);
    };
    for name in [
        "model.diffusion_model.transformer_blocks.3.attn1.to_q.weight",
        "vae.decoder.conv_out.conv.weight",
        "vae.per_channel_statistics.mean-of-means",
        "text_encoder.encoder.block.1.layer.0.SelfAttention.q.weight",
    ] {
        broken(&|m| m.tensors.retain(|t| t.name != name), &["m.safetensors", "missing", "fix:"]);
        broken(
            &|m| {
                let t = m.tensor(name);
                t.shape = vec![t.shape.iter().product()];
                if t.name.ends_with("means") {
                    t.shape.insert(0, 1);
                }
            },
            &["m.safetensors", "has shape", "expected", "fix:"],
        );
        broken(
            &|m| {
                // as many bytes, read as something that is no weight
                let t = m.tensor(name);
                let n: usize = t.shape.iter().product();
                t.dtype = if t.bytes.len() / n == 4 { "I32".into() } else { "I16".into() };
            },
            &["m.safetensors", "type I16", "fix:"],
        );
    }
    // parts that are gone altogether
    broken(&|m| m.tensors.retain(|t| !t.name.starts_with("vae.")), &["m.safetensors", "brings no VAE", "--vae PATH"]);
    broken(&|m| m.tensors.retain(|t| !t.name.starts_with("text_encoder.")), &["no text encoder", "--text-encoder"]);
    broken(&|m| m.tensors.retain(|t| !t.name.starts_with("model.")), &["m.safetensors", "missing"]);
    // no configuration, and sizes that do not tell it
    broken(&|m| _ = m.metadata.remove("config"), &["m.safetensors", "`config`", "192", "fix:"]);
    broken(&|m| _ = m.metadata.insert("config".into(), "{".into()), &["`config` in its header", "not JSON"]);
    broken(&|m| _ = m.metadata.insert("config".into(), "[]".into()), &["not a JSON object"]);
    // the tokenizer
    broken(&|m| _ = m.metadata.remove("tokenizer"), &["538", "--tokenizer"]);
    for garbage in ["", "{}", "[1, 2]", "{\"model\": {\"type\": \"WordPiece\"}}", "\u{0}\u{1}"] {
        broken(&|m| _ = m.metadata.insert("tokenizer".into(), garbage.into()), &["`tokenizer` in its header", "fix:"]);
    }
}

/// Headers that safetensors' own checks meet.
#[test]
fn headers_that_lie() {
    let scratch = Scratch::new();
    let name = "vae.decoder.conv_out.conv.weight";
    let lies: [(&str, Value); 7] = [
        ("/data_offsets", json!([0, 18_446_744_073_709_551_615u64])),
        ("/data_offsets", json!([100, 50])),
        ("/data_offsets", json!([0])),
        ("/shape", json!([4_294_967_296u64, 4_294_967_296u64, 3, 3, 3])),
        ("/shape", json!([-1, 3])),
        ("/shape", json!([1, 1])),
        ("/dtype", json!("F128")),
    ];
    for (pointer, lie) in lies {
        let model = Model::tiny();
        let mut header = model.header();
        *header[name].pointer_mut(pointer).unwrap() = lie;
        let header = header.to_string();
        let data = model.tensors.iter().map(|t| t.bytes);
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length[..], header.as_bytes()].into_iter().chain(data);
        let path = scratch.write("m.safetensors", file.collect::<Vec<_>>().concat());
        no_model(&scratch, path.to_str().unwrap(), &["m.safetensors", "not a whole safetensors or GGUF file", "fix:"]);
    }
}

#[test]
fn weights_that_hold_no_numbers() {
    let scratch = Scratch::new();
    let mut model = Model::tiny();
    let name = "model.diffusion_model.proj_out.weight";
    let t = model.tensor(name);
    // numbers, but so large that what is computed with them is none
    let count = t.shape.iter().product();
    (t.dtype, t.bytes) = ("F32".to_string(), Vec::leak(f32::MAX.to_le_bytes().repeat(count)));
    let path = scratch.write("m.safetensors", model.bytes());
    let before = scratch.listing();
    let args = short(&["-o", "a.gif", "--model", path.to_str().unwrap()]);
    // found only by computing, so it counts as a run that failed
    judge(&args, &reel(&scratch.0, &args), 1, &["no numbers", "fix:"]);
    assert_eq!(scratch.listing(), before);
}

/// A text encoder that is named counts in what is missing, in the plan and in the error.
#[test]
fn a_named_text_encoder_that_is_not_here() {
    let scratch = Scratch::new();
    let args = |encoder| {
        let model = ["--model", "ltx-2b-0.9.8-distilled", "--text-encoder", encoder];
        [&["generate", "waves", "--seed", "7", "-o", "a.gif"], &model[..]].concat()
    };
    let pull = "reel models pull ltx-2b-0.9.8-distilled --text-encoder t5-xxl-q6_k";
    refused(&scratch, &args("t5-xxl-q6_k"), &["`t5-xxl-q6_k`, 3.91 GB", pull, "10.8 GB in all"]);
    let plan = reel(&scratch.0, &[&args("t5-xxl-q6_k"), &["--dry-run"][..]].concat());
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan.stderr));
    let said = text(&plan.stdout);
    assert!(
        said.contains("download  10.8 GB; ")
            && said.contains(" are free in `")
            && said.contains("t5-xxl-q6_k: 3.91 GB"),
        "{said}"
    );
    refused(&scratch, &[&args("t5-xxl-nope"), &["--dry-run"][..]].concat(), &["`t5-xxl-nope`", "models list", "fix:"]);
}

/// What is packed or quantised is never what is replaced, whatever name leads to it.
#[test]
fn packing_and_quantising_spare_their_input() {
    let scratch = Scratch::new();
    Model::tiny().directory(&scratch, "ck");
    let part = "ck/transformer/diffusion_pytorch_model.safetensors";
    refused(&scratch, &["models", "pack", "ck", "-o", part, "--force"], &[part, "itself", "fix:"]);
    if cfg!(unix) {
        let quantize = ["models", "quantize", part, "--type", "q8_0", "-o", "link.gguf", "--force"];
        #[cfg(unix)]
        std::os::unix::fs::symlink(part, scratch.path("link.gguf")).unwrap();
        refused(&scratch, &quantize, &["link.gguf", "itself", "fix:"]);
    }
}

/// Weights that are numbers, of which a decoder makes none: a black clip would tell nobody.
#[test]
fn pixels_that_are_no_numbers() {
    let scratch = Scratch::new();
    let mut model = Model::tiny();
    let name = model.tensors.iter().map(|t| &t.name).find(|name| name.ends_with("decoder.conv_out.conv.weight"));
    let name = name.unwrap().clone();
    let t = model.tensor(&name);
    let count = t.shape.iter().product();
    (t.dtype, t.bytes) = ("F32".to_string(), Vec::leak(f32::MAX.to_le_bytes().repeat(count)));
    scratch.write("m.safetensors", model.bytes());
    let args = short(&["-o", "a.gif", "--model", "m.safetensors"]);
    judge(&args, &reel(&scratch.0, &args), 1, &["VAE", "no numbers", "fix:"]);
    assert!(!scratch.path("a.gif").exists());
}

/// A diffusers directory, and what it may lack.
#[test]
fn directories() {
    let scratch = Scratch::new();
    let dir = Model::tiny().directory(&scratch, "model");
    let output = reel(&scratch.0, &short(&["-o", "a.gif", "--model", "model"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    std::fs::remove_file(scratch.path("a.gif")).unwrap();

    let away = scratch.path("away");
    let without = |part: &str, words: &[&str]| {
        std::fs::rename(dir.join(part), &away).unwrap();
        no_model(&scratch, "model", words);
        std::fs::rename(&away, dir.join(part)).unwrap();
    };
    without("transformer", &["`model`", "not a checkpoint", "fix:"]);
    without("vae", &["`model`", "not a checkpoint", "fix:"]);
    without("vae/config.json", &["vae/config.json", "fix:"]);
    without("transformer/config.json", &["transformer/config.json", "fix:"]);
    without("transformer/diffusion_pytorch_model.safetensors", &["model/transformer", ".safetensors", "fix:"]);
    without("scheduler", &["scheduler_config.json", "fix:"]);
    without("text_encoder", &["no text encoder", "--text-encoder"]);
    without("tokenizer", &["--tokenizer"]);
    without("tokenizer/tokenizer.json", &["--tokenizer"]);

    let with = |part: &str, bytes: &[u8], words: &[&str]| {
        let old = std::fs::read(dir.join(part)).ok();
        std::fs::write(dir.join(part), bytes).unwrap();
        no_model(&scratch, "model", words);
        match old {
            Some(old) => std::fs::write(dir.join(part), old).unwrap(),
            None => std::fs::remove_file(dir.join(part)).unwrap(),
        }
    };
    with("vae/config.json", b"{ not json", &["vae/config.json", "not JSON", "fix:"]);
    with("vae/config.json", b"\xff\xfe\x00", &["vae/config.json", "fix:"]);
    with("vae/config.json", b"[]", &["vae/config.json"]);
    with("model_index.json", b"nonsense", &["model_index.json", "fix:"]);
    with("tokenizer/tokenizer.json", b"nonsense", &["tokenizer.json", "fix:"]);
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    with(index, b"{}", &["weight_map", "fix:"]);
    with(index, b"{\"weight_map\": {}}", &["weight_map", "fix:"]);
    with(index, b"{\"weight_map\": {\"a\": \"gone.safetensors\"}}", &["gone.safetensors", "missing", "fix:"]);
    with("vae/other.safetensors", b"x", &["several .safetensors", "fix:"]);

    // a text encoder of another width
    let mut narrow = Model::tiny();
    let mut config = narrow.config();
    config["text_encoder"]["d_model"] = json!(64);
    narrow.set_config(&config);
    let other = narrow.directory(&scratch, "narrow").join("text_encoder");
    let args = ["generate", "x", "--model", "model", "--text-encoder", other.to_str().unwrap()];
    refused(&scratch, &args, &["128 channels", "64", "--text-encoder"]);
}

/// A golden file by name.
fn golden(name: &str) -> String {
    format!("{}/tests/goldens/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn upscalers_that_do_not_fit() {
    let scratch = Scratch::new();
    let of = |model: &str, upscaler: &str, size: &str, words: &[&str]| {
        let args =
            ["generate", "x", "--seed", "7", "-o", "a.gif", "--model", model, "--upscaler", upscaler, "--size", size];
        refused(&scratch, &args, words);
    };
    let (model, text) = (golden("pipeline_095"), golden("pipeline_090"));
    of(&model, &golden("upscaler_time"), "64x64", &["enlarges time", "space alone", "`none`", "fix:"]);
    of("tiny", &golden("upscaler"), "64x64", &["9 channels", "this model's", "fix:"]);
    of(&model, &golden("t5"), "64x64", &["t5.safetensors", "config", "fix:"]);
    of(&model, &golden("rope"), "64x64", &["rope.safetensors", "fix:"]);
    of(&model, &golden("upscaler"), "16x64", &["16x64", "two passes", "--upscaler none", "fix:"]);
    of(&text, &golden("upscaler"), "64x64", &["--upscaler", "0.9.5", "fix:"]);
    of(&model, scratch.0.to_str().unwrap(), "64x64", &["no .safetensors", "fix:"]);

    // a network that lacks a tensor, as a diffusers directory
    let file = std::fs::read(golden("upscaler_2d")).unwrap();
    let config: Value = json!({"_class_name": "LTXLatentUpsamplerModel", "in_channels": 9, "mid_channels": 32,
                               "num_blocks_per_stage": 2, "dims": 2, "spatial_upsample": true, "temporal_upsample": false});
    scratch.write("dir/latent_upsampler/diffusion_pytorch_model.safetensors", &file);
    scratch.write("dir/latent_upsampler/config.json", config.to_string());
    of(&model, "dir", "64x64", &["`res_blocks.1.conv1.weight` is missing", "fix:"]);
    scratch.write("dir/latent_upsampler/config.json", r#"{"mid_channels": 40}"#);
    of(&model, "dir", "64x64", &["`mid_channels` is 40", "multiple of 32", "fix:"]);
}
