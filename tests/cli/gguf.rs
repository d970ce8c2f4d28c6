//! GGUF files that are broken, of unknown types, or lack what belongs to them.

use super::common::*;
use reel::embedded::TINY;
use reel::platform::files::AtomicFile;
use reel::weights::gguf::{self, Part};
use reel::weights::open::Tensors;
use std::path::Path;

fn no_model(scratch: &Scratch, model: &str, more: &[&str], words: &[&str]) {
    let flags = ["generate", "a red ball", "--seed", "7", "-o", "a.gif", "--model", model];
    refused(scratch, &[&flags, more].concat(), words);
}

/// The transformer of the embedded model, but for what `keep` leaves out.
fn write(path: &Path, entries: &[(&str, &str)], keep: impl Fn(&str) -> bool) {
    let all = Tensors::embedded(TINY, "tiny").unwrap();
    let part = all.renamed(|name| Some(name.strip_prefix("model.diffusion_model.").filter(|n| keep(n))?.to_string()));
    let raws: Vec<_> = part.iter().collect();
    let parts: Vec<Part> = raws
        .iter()
        .map(|(name, raw)| Part { name: name.to_string(), dtype: raw.dtype, shape: raw.shape.to_vec() })
        .collect();
    let config = all.metadata("config").unwrap();
    let entries = [entries, &[("config", config)]].concat();
    let file = AtomicFile::create(path, true).unwrap();
    gguf::write(&file, &entries, &parts, |i, to| Ok(to.write_all(raws[i].1.bytes)?)).unwrap();
    file.commit().unwrap();
}

#[test]
fn damaged_files_are_refused_by_name() {
    let scratch = Scratch::new();
    scratch.write("vae.safetensors", TINY);
    let path = scratch.path("good.gguf");
    write(&path, &[("general.architecture", "ltxv")], |_| true);
    let good = std::fs::read(&path).unwrap();
    let needs = ["--vae", "vae.safetensors"];
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let find = |text: &[u8]| good.windows(text.len()).position(|w| w == text).unwrap();
    // behind a name stand the number of dimensions, the dimensions, the type and the place
    let name = b"transformer_blocks.3.ff.net.2.weight";
    let (dimensions, side, kind) = (find(name) + name.len(), find(name) + name.len() + 4, find(name) + name.len() + 20);
    let files: [(&str, Vec<u8>, &[&str]); 12] = [
        ("cut-in-magic", good[..6].to_vec(), &["not a whole GGUF file"]),
        ("cut-in-counts", good[..20].to_vec(), &["not a whole GGUF file"]),
        ("cut-in-header", good[..good.len() / 400].to_vec(), &["not a whole GGUF file"]),
        ("cut-in-data", good[..good.len() / 2].to_vec(), &["not a whole GGUF file", "it ends before the tensor `"]),
        ("cut-at-the-end", good[..good.len() - 32].to_vec(), &["it ends before the tensor `"]),
        ("version", with(4, &[1, 0, 0, 0]), &["version 1", "reads 2 and 3"]),
        ("many-tensors", with(8, &[255; 8]), &["not a whole GGUF file"]),
        ("many-entries", with(16, &[255; 8]), &["not a whole GGUF file"]),
        ("unknown-type", with(kind, &[20, 0, 0, 0]), &["`transformer_blocks.3.ff.net.2.weight`", "IQ4_NL"]),
        ("no-type", with(kind, &[200, 0, 0, 0]), &["`transformer_blocks.3.ff.net.2.weight`", "type 200"]),
        ("dimensions", with(dimensions, &[9, 0, 0, 0]), &["`transformer_blocks.3.ff.net.2.weight` has 9 dimensions"]),
        ("huge-side", with(side, &[255; 8]), &["`transformer_blocks.3.ff.net.2.weight`"]),
    ];
    for (file, bytes, words) in files {
        let path = scratch.write(&format!("{file}.gguf"), bytes);
        no_model(&scratch, path.to_str().unwrap(), &needs, &[words, &[file, "fix:"]].concat());
        refused(&scratch, &["generate", "x", "--text-encoder", path.to_str().unwrap()], &[file, "fix:"]);
    }
}

#[test]
fn what_is_missing_is_named() {
    let scratch = Scratch::new();
    let path = scratch.path("m/model.gguf");
    std::fs::create_dir(scratch.path("m")).unwrap();
    write(&path, &[], |_| true);
    let model = path.to_str().unwrap();
    no_model(&scratch, model, &[], &["brings no VAE", "none beside it", "--vae PATH", "fix:"]);
    no_model(&scratch, model, &["--vae", "nowhere"], &["no VAE at `nowhere`", "--vae", "fix:"]);
    no_model(&scratch, model, &["--vae", model], &["no video autoencoder", "fix:"]);
    let vae = scratch.write("m/a.safetensors", TINY);
    no_model(&scratch, model, &[], &["brings no text encoder", "--text-encoder", "fix:"]);
    scratch.write("m/b.safetensors", TINY);
    no_model(&scratch, model, &[], &["several beside it", "a.safetensors", "b.safetensors", "--vae PATH"]);
    write(&path, &[], |name| name != "transformer_blocks.5.attn2.to_v.weight");
    let text = ["--vae", vae.to_str().unwrap(), "--text-encoder", model];
    no_model(&scratch, model, &text, &["not a T5 encoder", "fix:"]);
    no_model(&scratch, "gone.gguf", &[], &["no checkpoint at `gone.gguf`", "fix:"]);
}

#[test]
fn a_file_of_another_model_is_told_by_its_architecture() {
    let scratch = Scratch::new();
    let all = Tensors::embedded(TINY, "tiny").unwrap();
    let (_, raw) = all.iter().next().unwrap();
    let part = Part { name: "blk.0.attn_q.weight".to_string(), dtype: raw.dtype, shape: raw.shape.to_vec() };
    let path = scratch.path("other.gguf");
    let file = AtomicFile::create(&path, true).unwrap();
    gguf::write(&file, &[("general.architecture", "llama")], &[part], |_, to| Ok(to.write_all(raw.bytes)?)).unwrap();
    file.commit().unwrap();
    no_model(&scratch, path.to_str().unwrap(), &[], &["architecture `llama`", "LTX-Video's is `ltxv`", "fix:"]);
}
