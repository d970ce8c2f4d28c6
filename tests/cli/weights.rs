//! Weights in forms of other programs: read as what they are, or refused by name.

use super::common::*;
use reel::models::ltx::names::{TRANSFORMER_PREFIX, VAE_PREFIX};
use reel::models::text::open::TEXT_PREFIX;
use serde_json::json;

const Q: &str = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight";

/// A file of the embedded model's tensors; `change` may rename, retype, add and remove them.
fn write(scratch: &Scratch, name: &str, change: impl FnOnce(&mut Model)) -> String {
    let mut model = Model::tiny();
    change(&mut model);
    scratch.write(name, model.bytes()).to_str().unwrap().to_string()
}

fn tensor(name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.to_string(), dtype: dtype.to_string(), shape: shape.to_vec(), bytes: bytes.leak() }
}

/// The frames of a short clip, as Y4M.
fn clip(scratch: &Scratch, flags: &[&str]) -> Vec<u8> {
    let output = reel(&scratch.0, &short(&[&["-o", "-"], flags].concat()));
    assert!(output.status.success(), "{flags:?}\n{}", text(&output.stderr));
    output.stdout
}

/// What ComfyUI saves: the same parts below other prefixes.
#[test]
fn prefixes_of_other_programs() {
    let scratch = Scratch::new();
    let want = clip(&scratch, &["--model", "tiny"]);
    let renamed = |name: &str, transformer: &str, text: &str, vae: &str| {
        write(&scratch, name, |model| {
            for tensor in &mut model.tensors {
                for (own, other) in [(TRANSFORMER_PREFIX, transformer), (TEXT_PREFIX, text), (VAE_PREFIX, vae)] {
                    if let Some(rest) = tensor.name.strip_prefix(own) {
                        tensor.name = format!("{other}{rest}");
                        break;
                    }
                }
            }
        })
    };
    let comfy = "text_encoders.t5xxl.transformer.";
    let saved = renamed("saved.safetensors", TRANSFORMER_PREFIX, comfy, VAE_PREFIX);
    let other = renamed("other.safetensors", "diffusion_model.", "cond_stage_model.t5.", "first_stage_model.");
    for file in [&saved, &other] {
        assert!(clip(&scratch, &["--model", file]) == want, "{file}");
        scratch.write("tokenizer.json", Model::tiny().metadata["tokenizer"].as_str().unwrap());
        let beside = ["--model", "tiny", "--text-encoder", file, "--tokenizer", "tokenizer.json"];
        assert!(clip(&scratch, &beside) == want, "--text-encoder {file}");
        assert!(clip(&scratch, &["--model", "tiny", "--vae", file]) == want, "--vae {file}");
    }
}

#[test]
fn unread_forms_are_named() {
    let scratch = Scratch::new();
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let q = |model: &mut Model| model.tensor(Q).shape.clone();
    let beside = |name: &str| Q.replace("weight", name);
    type Change<'a> = &'a dyn Fn(&mut Model);
    let retyped = |dtype: &str| {
        let dtype = dtype.to_string();
        move |model: &mut Model| {
            let shape = model.tensor(Q).shape.clone();
            *model.tensor(Q) = tensor(Q, &dtype, &shape, vec![1; elements(&shape)]);
        }
    };
    let (e5m2, int8) = (retyped("F8_E5M2"), retyped("I8"));
    let quanto = |model: &mut Model| {
        let shape = q(model);
        model.tensors.retain(|t| t.name != Q);
        model.tensors.push(tensor(&format!("{Q}._data"), "I8", &shape, vec![1; elements(&shape)]));
        model.tensors.push(tensor(&format!("{Q}._scale"), "BF16", &[shape[0], 1], vec![1; 2 * shape[0]]));
        model.tensors.push(tensor(&beside("input_scale"), "F32", &[], 1f32.to_le_bytes().to_vec()));
    };
    let with = |name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>| {
        let added = tensor(&beside(name), dtype, shape, bytes);
        let e4m3 = retyped("F8_E4M3");
        move |model: &mut Model| {
            e4m3(model);
            model.tensors.push(added.clone());
        }
    };
    let scale = 1f32.to_le_bytes().to_vec();
    let nan = f32::NAN.to_le_bytes().to_vec();
    let cases: [(&str, Change, &[&str]); 10] = [
        ("e5m2", &e5m2, &["F8_E5M2", "to_q.weight"]),
        ("int8", &int8, &["type I8", "to_q.weight"]),
        ("quanto", &quanto, &["optimum-quanto int8", "to_q.weight._data"]),
        ("inverse", &with("weight_scale_inv", "F32", &[1, 1], scale.clone()), &["block-wise scaled fp8"]),
        ("nvfp4", &with("weight_scale_2", "F32", &[], scale.clone()), &["NVFP4"]),
        (
            "nobody",
            &with("w_scales", "F32", &[], scale.clone()),
            &["F8_E4M3 with scales of an unknown form", "w_scales"],
        ),
        ("plain", &with("scale", "F32", &[], scale.clone()), &["F8_E4M3 with scales of an unknown form", "to_q.scale"]),
        ("blocks", &with("weight_scale", "F32", &[2, 2], scale.repeat(4)), &["F8_E4M3 with scales", "weight_scale"]),
        ("nan", &with("scale_weight", "F32", &[1], nan), &["F8_E4M3 with scales", "scale_weight"]),
        ("format", &with("comfy_quant", "U8", &[18], br#"{"format":"mxfp8"}"#.to_vec()), &["ComfyUI's `mxfp8`"]),
    ];
    for (name, change, words) in cases {
        let file = write(&scratch, &format!("{name}.safetensors"), change);
        let words = [words, &[name, "does not read", "fix: use the same weights in bf16"]].concat();
        refused(&scratch, &["generate", "x", "--model", &file, "-o", "a.gif"], &words);
        let out = scratch.path("q.gguf");
        if !["e5m2", "int8"].contains(&name) {
            refused(&scratch, &["models", "quantize", &file, "--type", "q8_0", "-o", out.to_str().unwrap()], &words);
        }
    }
}

/// A file of a diffusers repository, fetched by itself.
#[test]
fn a_vae_without_its_configuration() {
    let scratch = Scratch::new();
    let model = Model::tiny();
    model.directory(&scratch, "all");
    let alone = scratch.path("alone.safetensors");
    std::fs::copy(scratch.path("all/vae/diffusion_pytorch_model.safetensors"), &alone).unwrap();
    let flags = ["generate", "x", "--vae", alone.to_str().unwrap(), "-o", "a.gif"];
    refused(
        &scratch,
        &flags,
        &["alone.safetensors", "without its configuration", "fix: put its `config.json` beside it"],
    );
    scratch.write("config.json", model.config()["vae"].to_string());
    assert!(clip(&scratch, &["--vae", alone.to_str().unwrap()]) == clip(&scratch, &[]));
}

/// transformers' and diffusers' names of a variant's shards.
#[test]
fn indices_of_variants_and_broken_ones() {
    let scratch = Scratch::new();
    Model::tiny().directory(&scratch, "m");
    let want = clip(&scratch, &["--model", "m"]);
    for (part, stem) in [("text_encoder", "model"), ("transformer", "diffusion_pytorch_model")] {
        let shard = format!("{stem}.fp16-00001-of-00001.safetensors");
        let file = |name: &str| scratch.path(&format!("m/{part}/{name}"));
        std::fs::rename(file(&format!("{stem}.safetensors")), file(&shard)).unwrap();
        let index = |map: serde_json::Value| {
            scratch.write(
                &format!("m/{part}/{stem}.safetensors.index.fp16.json"),
                json!({"metadata": {}, "weight_map": map}).to_string(),
            );
        };
        index(json!({"a": shard}));
        assert!(clip(&scratch, &["--model", "m"]) == want, "{part}");
        for bad in [json!({"a": 3}), json!({"a": "../text_encoder/x"}), json!({"a": ".."}), json!({"a": ""})] {
            index(bad);
            refused(&scratch, &["generate", "x", "--model", "m"], &["names no file in its folder for the tensor `a`"]);
        }
        index(json!({"a": "gone.safetensors"}));
        refused(&scratch, &["generate", "x", "--model", "m"], &["gone.safetensors", "is missing"]);
        index(json!({}));
        refused(&scratch, &["generate", "x", "--model", "m"], &["no `weight_map` with files"]);
        index(json!({"a": shard}));
    }
}

/// The bytes of a copy of the embedded model in which a tensor's bytes are changed.
fn damaged(scratch: &Scratch, name: &str, tensor: &str, change: impl FnOnce(&mut [u8])) -> String {
    write(scratch, name, |model| {
        let tensor = model.tensor(tensor);
        let mut bytes = tensor.bytes.to_vec();
        change(&mut bytes);
        tensor.bytes = bytes.leak();
    })
}

/// A download that stopped, on a file that has its size from the start.
#[test]
fn weights_that_were_never_written() {
    let scratch = Scratch::new();
    let text = "text_encoder.encoder.block.0.layer.1.DenseReluDense.wo.weight";
    let conv = "vae.decoder.conv_in.conv.weight";
    for name in [Q, text, conv] {
        for part in [1, 2, 3] {
            let file = damaged(&scratch, "zeros.safetensors", name, |bytes| {
                let len = bytes.len();
                match part {
                    1 => bytes.fill(0),
                    2 => bytes[len / 2..].fill(0),
                    _ => bytes[len / 4..len * 3 / 4].fill(0),
                }
            });
            let own = name.rsplit_once("block").map_or("conv_in", |(_, own)| own);
            let words = ["zeros.safetensors", "is damaged", own, "is zeros for", "fix: fetch it again"];
            refused(&scratch, &["generate", "x", "--model", &file, "--dry-run"], &words);
        }
    }
    // a bias may be zeros, and so may a few rows
    let bias = damaged(&scratch, "bias.safetensors", &Q.replace("weight", "bias"), |bytes| bytes.fill(0));
    clip(&scratch, &["--model", &bias]);
    let rows = damaged(&scratch, "rows.safetensors", Q, |bytes| bytes[..4096].fill(0));
    clip(&scratch, &["--model", &rows]);
}

#[test]
fn weights_that_are_no_numbers() {
    let scratch = Scratch::new();
    let text = "text_encoder.encoder.block.0.layer.1.DenseReluDense.wo.weight";
    for name in
        [Q.to_string(), Q.replace("weight", "bias"), text.to_string(), "vae.decoder.conv_in.conv.weight".to_string()]
    {
        // all bits set are no number in any type
        let file = damaged(&scratch, "nan.safetensors", &name, |bytes| {
            let at = bytes.len() / 8 * 4;
            bytes[at..at + 4].fill(0xff);
        });
        let words = ["nan.safetensors", "is damaged", "no numbers (NaN or infinite)", "fix: fetch it again"];
        refused(&scratch, &["generate", "x", "--model", &file, "--dry-run"], &words);
    }
    // of a table of words the rows that are read are known under way; the file is the user's to mend all the same
    let file = damaged(&scratch, "table.safetensors", "text_encoder.shared.weight", |bytes| bytes.fill(0xff));
    let words =
        ["table.safetensors", "is damaged", "shared.weight", "no numbers (NaN or infinite)", "fix: fetch it again"];
    refused(&scratch, &["generate", "x", "--model", &file, "-o", "a.gif"], &words);
}

#[test]
fn files_that_are_cut_say_so() {
    let scratch = Scratch::new();
    let whole = Model::tiny().bytes();
    for len in [whole.len() - 1, whole.len() / 2, 9, 8, 7, 1, 0] {
        let file = scratch.write("cut.safetensors", &whole[..len]);
        refused(
            &scratch,
            &["generate", "x", "--model", file.to_str().unwrap()],
            &["cut.safetensors", "not a whole", "fix:"],
        );
    }
    let file = scratch.write("cut.safetensors", &whole[..whole.len() - 1]);
    let words = [format!("its header says {} bytes", whole.len()), format!("it has {} bytes", whole.len() - 1)];
    refused(&scratch, &["generate", "x", "--model", file.to_str().unwrap()], &[&words[0], &words[1]]);
}

/// Numbers in names and headers size nothing.
#[test]
fn names_and_headers_of_any_size() {
    let scratch = Scratch::new();
    let want = clip(&scratch, &[]);
    for number in ["99999999999999", "18446744073709551615", "18446744073709551616", "4000000000", "007", "-1"] {
        for prefix in ["model.diffusion_model.transformer_blocks.", "text_encoder.encoder.block."] {
            let file = write(&scratch, "many.safetensors", |model| {
                model.tensors.push(tensor(&format!("{prefix}{number}.x"), "F32", &[0], vec![]));
            });
            assert!(clip(&scratch, &["--model", &file]) == want, "{prefix}{number}");
        }
    }
    let long = "x".repeat(100_000);
    let shape = vec![1usize; 5000];
    let cases: [(&str, Tensor, &str); 4] = [
        ("name", tensor(&long, "F32", &[0], vec![]), "name has 100000 bytes"),
        ("dimensions", tensor("x", "F32", &shape, vec![0; 4]), "5000 dimensions"),
        ("side", tensor("x", "F32", &[0, 1 << 50], vec![]), "has shape"),
        ("sides", tensor("x", "F32", &[1 << 30, 1 << 30, 0], vec![]), "has shape"),
    ];
    for (name, added, want) in cases {
        let file = write(&scratch, &format!("{name}.safetensors"), |model| model.tensors.push(added));
        refused(&scratch, &["generate", "x", "--model", &file], &[name, want, "fix:"]);
    }
    let mut huge = Model::tiny().bytes();
    huge[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    scratch.write("huge.safetensors", huge);
    refused(
        &scratch,
        &["generate", "x", "--model", "huge.safetensors"],
        &["huge.safetensors", "not a whole", "a header of"],
    );
}
