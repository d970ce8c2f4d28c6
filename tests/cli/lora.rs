//! LoRAs that fit nothing, and flags that mean none.

use super::common::*;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// A name and a shape.
type Zeros<'a> = (&'a str, &'a [usize]);

/// A file of zeros under these names.
fn write(path: &Path, tensors: &[Zeros]) {
    let zeros = vec![0u8; 4 * 1024 * 64];
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = &zeros[..4 * shape.iter().product::<usize>()];
        (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

const Q: &str = "transformer.transformer_blocks.0.attn1.to_q";

#[test]
fn loras_that_do_not_fit() {
    let scratch = Scratch::new();
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let good: [(&str, &[usize]); 2] = [(&a, &[4, 192]), (&b, &[192, 4])];
    let other = |name: &'static str| [&good[..], &[(name, &[4, 192][..])]].concat();
    let cases: Vec<(&str, Vec<Zeros>, &[&str])> = vec![
        ("none", vec![], &["is empty"]),
        (
            "unknown",
            other("transformer.blocks.3.q.lora_A.weight"),
            &["no part of this model", "`transformer.blocks.3.q.lora_A.weight`"],
        ),
        (
            "deep",
            other("transformer.transformer_blocks.99.attn1.to_q.lora_A.weight"),
            &["no part of this model", "blocks.99"],
        ),
        ("bias", other("diffusion_model.transformer_blocks.0.attn1.to_q.diff_b"), &["bias of another model", "diff_b"]),
        ("nowhere", other("diffusion_model.transformer_blocks.77.diff_b"), &["no part of this model", "77.diff_b"]),
        ("diff", other("diffusion_model.transformer_blocks.0.attn1.to_q.diff"), &["whole differences", "to_q.diff"]),
        ("loha", other("diffusion_model.transformer_blocks.0.attn1.to_q.hada_w1_a"), &["a LoHa", "hada_w1_a"]),
        ("size", vec![(&a, &[4, 96]), (&b, &[96, 4])], &["another size of model", "96 x 96", "192 x 192"]),
        ("half", vec![(&a, &[4, 192])], &["one half of `transformer_blocks.0.attn1.to_q`"]),
        ("ranks", vec![(&a, &[4, 192]), (&b, &[192, 3])], &["do not multiply", "[4, 192]", "[192, 3]"]),
        ("rank", vec![(&a, &[4, 192, 1]), (&b, &[192, 4])], &["no matrices"]),
        (
            "text",
            other("text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"),
            &["text encoder", "transformer alone"],
        ),
        ("kohya", other("lora_te1_encoder_block_0_q.lora_down.weight"), &["text encoder", "transformer alone"]),
        ("dora", other("transformer.transformer_blocks.0.attn1.to_q.dora_scale"), &["DoRA"]),
        ("peft-dora", other("base_model.model.transformer_blocks.0.attn1.to_q.lora_magnitude_vector"), &["DoRA"]),
        ("named", other("transformer_blocks.0.attn1.to_q.lora_magnitude_vector.default.weight"), &["DoRA"]),
        ("twice", other("diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"), &["mean the same"]),
    ];
    for (name, tensors, words) in cases {
        let path = scratch.path(&format!("{name}.safetensors"));
        write(&path, &tensors);
        let flags = ["generate", "a car", "-o", "a.gif", "--lora", path.to_str().unwrap()];
        refused(&scratch, &flags, &[words, &[name, "fix:"]].concat());
    }
    let many: Vec<String> = (0..9).map(|i| format!("blocks.{i}.lora_A.weight")).collect();
    let many: Vec<(&str, &[usize])> = many.iter().map(|name| (name.as_str(), &[4, 192][..])).collect();
    let path = scratch.path("many.safetensors");
    write(&path, &many);
    refused(
        &scratch,
        &["generate", "x", "--lora", path.to_str().unwrap()],
        &["`blocks.3.lora_A.weight` and 5 more", "fix:"],
    );
}

/// Each factor is a number, and their product is none.
#[test]
fn a_product_beyond_all_numbers_is_refused() {
    let scratch = Scratch::new();
    let write = |name: &str, key: &str, value: f32| {
        let bytes = value.to_le_bytes().repeat(4 * 192);
        let view = |shape: &[usize]| TensorView::new(Dtype::F32, shape.to_vec(), &bytes).unwrap();
        let tensors =
            [(format!("{Q}.lora_A.weight"), view(&[4, 192])), (format!("{Q}.lora_B.weight"), view(&[192, 4]))];
        let row = TensorView::new(Dtype::F32, vec![192], &bytes[..4 * 192]).unwrap();
        let bias = (key == "bias").then(|| (format!("{Q}.diff_b"), row));
        let tensors = tensors.into_iter().filter(|_| bias.is_none()).chain(bias.clone());
        safetensors::serialize_to_file(tensors, None, &scratch.path(name)).unwrap();
    };
    write("huge.safetensors", "product", 1e20);
    write("bias.safetensors", "bias", 1e38);
    write("half.safetensors", "product", 50.0); // the model's weights are in f16
    let words = ["the LoRA", "huge.safetensors", "to_q.lora_B.weight` and `", "to_q.lora_A.weight`", "fix: "];
    refused(&scratch, &["generate", "x", "--lora", "huge.safetensors", "-o", "a.gif"], &words);
    refused(&scratch, &["generate", "x", "--lora", "bias.safetensors:9", "-o", "a.gif"], &["to_q.diff_b`", "fix: "]);
    refused(
        &scratch,
        &["generate", "x", "--lora", "half.safetensors:100", "-o", "a.gif"],
        &["half.safetensors", "100"],
    );
    assert!(reel(&scratch.0, &["generate", "x", "--lora", "half.safetensors", "--dry-run"]).status.success());
}

#[test]
fn flags_that_name_no_lora() {
    let scratch = Scratch::new();
    scratch.write("text.safetensors", "no weights at all");
    refused(&scratch, &["generate", "x", "--lora", "gone.safetensors"], &["no LoRA at `gone.safetensors`", "fix:"]);
    refused(&scratch, &["generate", "x", "--lora", "gone.safetensors:0.5"], &["no LoRA at `gone.safetensors`", "fix:"]);
    refused(&scratch, &["generate", "x", "--lora", "text.safetensors"], &["text.safetensors", "not a whole", "fix:"]);
    refused(&scratch, &["generate", "x", "--lora", ":0.5"], &["--lora", "FILE:SCALE"]);
    refused(&scratch, &["generate", "x", "--lora", "a.safetensors:inf"], &["--lora", "scale inf"]);
}

/// PEFT's file without its settings: nobody knows how strong it is to be, and that is said.
#[test]
fn peft_without_settings_is_told() {
    let scratch = Scratch::new();
    let key = |end: &str| format!("base_model.model.{}.{end}.weight", Q.replace("transformer.", ""));
    let (a, b) = (key("lora_A"), key("lora_B"));
    let path = scratch.path("l.safetensors");
    write(&path, &[(&a, &[4, 192]), (&b, &[192, 4])]);
    let said = |scratch: &Scratch| {
        let output = reel(&scratch.0, &["generate", "a car", "--dry-run", "--lora", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr) + &text(&output.stdout)
    };
    assert!(said(&scratch).contains("`adapter_config.json` is not beside it"), "{}", said(&scratch));
    scratch.write("adapter_config.json", r#"{"r": 4, "lora_alpha": 4}"#);
    assert!(!said(&scratch).contains("adapter_config"), "{}", said(&scratch));
    // a folder as PEFT saves it
    scratch.write("folder/adapter_config.json", r#"{"r": 8, "lora_alpha": 4}"#);
    std::fs::rename(&path, scratch.path("folder/adapter_model.safetensors")).unwrap();
    let words = ["folder", "adapter_config.json", "is 8, and 4 in the LoRA", "fix:"];
    refused(&scratch, &["generate", "x", "--lora", "folder"], &words);
}

/// Settings that make more of it than low-rank products, or that are for another one.
#[test]
fn settings_that_are_not_followed() {
    let scratch = Scratch::new();
    let (a, b) = (format!("base_model.model.{Q}.lora_A.weight"), format!("base_model.model.{Q}.lora_B.weight"));
    let (a, b) = (a.replace("transformer.", ""), b.replace("transformer.", ""));
    let path = scratch.path("l.safetensors");
    write(&path, &[(&a, &[4, 192]), (&b, &[192, 4])]);
    let cases: [(&str, &[&str]); 13] = [
        ("not json", &["not JSON"]),
        (r#"{"use_dora": true}"#, &["DoRA", "use_dora"]),
        (r#"{"peft_type": "LOKR"}"#, &["`LOKR`"]),
        (r#"{"bias": "lora_only"}"#, &["`bias` is `lora_only`"]),
        (r#"{"lora_bias": true}"#, &["`lora_bias`"]),
        (r#"{"modules_to_save": ["proj_out"]}"#, &["`modules_to_save`"]),
        (r#"{"init_lora_weights": "pissa_niter_16"}"#, &["pissa_niter_16", "changes the model's own weights"]),
        (r#"{"r": 8, "lora_alpha": 8}"#, &["rank", "is 8, and 4 in the LoRA"]),
        (r#"{"r": 8, "rank_pattern": {"to_q": 5}}"#, &["rank", "is 5, and 4 in the LoRA"]),
        (r#"{"lora_alpha": "much"}"#, &["`lora_alpha`", "no number"]),
        (r#"{"lora_alpha": 4, "alpha_pattern": {".*to_q": 2}}"#, &["regular expression", "`.*to_q`"]),
        (r#"{"lora_alpha": 4, "alpha_pattern": {"to_q": []}}"#, &["`alpha_pattern`", "no number"]),
        ("[]", &["not a JSON object"]),
    ];
    for (settings, words) in cases {
        scratch.write("adapter_config.json", settings);
        let flags = ["generate", "a car", "-o", "a.gif", "--lora", path.to_str().unwrap()];
        refused(&scratch, &flags, &[words, &["adapter_config.json"]].concat());
    }
}
