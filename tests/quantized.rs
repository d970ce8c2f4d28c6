//! Quantised weights: GGUF files through the program, and what `--quantize` loses.

use crate::common::{Clip, Scratch, generate, reel};
use reel::embedded;
use reel::models::ltx::names;
use reel::models::text::open::TEXT_PREFIX;
use reel::platform::files::AtomicFile;
use reel::weights::gguf::{self, Part};
use reel::weights::open::Tensors;
use std::path::Path;

const FLAGS: [&str; 10] = ["--size", "48x32", "--frames", "9", "--steps", "3", "--seed", "7", "--guidance", "3"];

fn make(model: &str, flags: &[&str]) -> Clip {
    generate(model, "a red ball on the sand", &[&FLAGS, flags].concat())
}

fn tiny() -> Tensors {
    Tensors::embedded(embedded::TINY, "tiny").unwrap()
}

/// Part of the embedded model as a GGUF file, in the types that it is stored in.
fn as_gguf(path: &str, prefix: &str, entries: &[(&str, &str)], rename: impl Fn(&str) -> String) {
    let part = tiny().renamed(|name| Some(rename(name.strip_prefix(prefix)?)));
    let raws: Vec<_> = part.iter().collect();
    let parts: Vec<Part> = raws
        .iter()
        .map(|(name, raw)| Part { name: name.to_string(), dtype: raw.dtype, shape: raw.shape.to_vec() })
        .collect();
    let file = AtomicFile::create(Path::new(path), true).unwrap();
    gguf::write(&file, entries, &parts, |i, to| Ok(to.write_all(raws[i].1.bytes)?)).unwrap();
    file.commit().unwrap();
}

/// A file as the community makes them holds the transformer alone; the VAE and the text encoder come beside it.
#[test]
fn a_gguf_of_the_same_numbers_gives_the_same_bytes() {
    let scratch = Scratch::new("gguf");
    let (vae, t5) = (scratch.path("all.safetensors"), scratch.path("t5.gguf"));
    std::fs::write(&vae, embedded::TINY).unwrap();
    let header = tiny();
    let config: serde_json::Value = serde_json::from_str(header.metadata("config").unwrap()).unwrap();
    let text = config["text_encoder"].to_string();
    as_gguf(&t5, TEXT_PREFIX, &[("general.architecture", "t5encoder"), ("config", &text)], |name| {
        reel::models::text::names::to_llama(name)
    });
    let tokenizer = scratch.path("tokenizer.json");
    std::fs::write(&tokenizer, header.metadata("tokenizer").unwrap()).unwrap();
    let want = make("tiny", &[]);
    for (file, prefix, beside) in [("plain", "", false), ("prefixed", names::TRANSFORMER_PREFIX, true)] {
        let model = scratch.path(&format!("{file}.gguf"));
        let entries = [("general.architecture", "ltxv"), ("name", "tiny"), ("config", &config.to_string())];
        as_gguf(&model, names::TRANSFORMER_PREFIX, &entries, |name| format!("{prefix}{name}"));
        let vae: &[&str] = if beside { &[] } else { &["--vae", &vae] };
        let flags = [&["--text-encoder", &t5, "--tokenizer", &tokenizer], vae].concat();
        assert!(make(&model, &flags) == want, "{file}");
    }
}

/// PSNR of two clips.
fn distance(a: &Clip, b: &Clip) -> f64 {
    let (a, b) = (a.frames.concat(), b.frames.concat());
    assert_eq!(a.len(), b.len());
    let square: f64 = a.iter().zip(&b).map(|(a, b)| (a.abs_diff(*b) as f64).powi(2)).sum();
    10.0 * (255.0 * 255.0 / (square / a.len() as f64)).log10()
}

/// What the embedded model may lose. Measured, prompt by prompt: Q8_0 54, 57 and 55 dB, Q4_K (of which rows of 192 stay as they
/// are) 48 dB each; the last digit differs from CPU to CPU. Sampling magnifies what is rounded, more or less by seed: `src/guide/quantising.md` has
/// the figures.
const Q8_LEAST: f64 = 46.0;
const Q4_LEAST: f64 = 34.0;

#[test]
fn the_embedded_model_stays_near_itself() {
    let prompts = [("a red ball bounces on green grass", "7"), ("a blue star rises at night", "3"), ("a car", "11")];
    for (prompt, seed) in prompts {
        let run = |more: &[&str]| {
            generate("tiny", prompt, &[&["--size", "64x64", "--frames", "17", "--seed", seed], more].concat())
        };
        let plain = run(&[]);
        for (kind, least) in [("q8_0", Q8_LEAST), ("q4_k", Q4_LEAST)] {
            let psnr = distance(&run(&["--quantize", kind]), &plain);
            println!("measured: {kind}, {prompt}: {psnr:.1} dB");
            assert!(psnr >= least && psnr.is_finite(), "{kind}, {prompt}: {psnr:.1} dB, at least {least}");
        }
    }
}

#[test]
fn what_stays_as_it_is_is_told() {
    let scratch = Scratch::new("told");
    let out = scratch.path("a.gif");
    let short = ["generate", "a car", "--size", "32x32", "--frames", "5", "--steps", "1", "--seed", "1", "-o", &out];
    let talk = |more: &[&str]| String::from_utf8(reel(&[&short, more].concat()).stderr).unwrap();
    let told = talk(&["--quantize", "q4_k", "--force"]);
    assert!(told.contains("--quantize q4_k: ") && told.contains("rows do not divide into blocks of 256"), "{told}");
    assert!(!told.contains("attn1.to_q"), "{told}");
    let told = talk(&["--quantize", "q4_k", "-v", "--force"]);
    assert!(told.contains("not quantised: transformer_blocks.0.attn1.to_q.weight"), "{told}");
    let told = talk(&["--quantize", "q8_0", "--force"]);
    assert!(!told.contains("stay as they are"), "{told}");
}

/// What the command writes is what `--quantize` makes; what is kept is used again; and both are whole files of their kind.
#[test]
fn files_and_caches_give_the_same_bytes() {
    let scratch = Scratch::new("kept");
    let all = scratch.path("all.safetensors");
    std::fs::write(&all, embedded::TINY).unwrap();
    let tokenizer = scratch.path("tokenizer.json");
    std::fs::write(&tokenizer, tiny().metadata("tokenizer").unwrap()).unwrap();
    let (model, t5) = (scratch.path("tiny-q8_0.gguf"), scratch.path("t5-q8_0.gguf"));
    let want = make(&all, &["--quantize", "q8_0"]);
    reel(&["models", "quantize", &all, "--type", "q8_0", "-o", &model]);
    reel(&["models", "quantize", &all, "--text", "--type", "q8_0", "-o", &t5]);
    let size = |path: &str| std::fs::metadata(path).unwrap().len();
    let parts = tiny();
    let half: usize = parts.iter().filter(|(name, _)| !name.starts_with("vae.")).map(|(_, raw)| raw.bytes.len()).sum();
    let whole = size(&model) + size(&t5);
    assert!(whole < half as u64 * 3 / 4, "{whole} of {half} bytes");
    let beside = ["--text-encoder", &t5, "--tokenizer", &tokenizer];
    assert!(make(&model, &beside) == want);

    let cache = scratch.path("cache");
    let run = |kind: &str| {
        let out = scratch.path(&format!("{kind}/"));
        let args =
            ["generate", "a red ball on the sand", "--model", &all, "--quantize", kind, "--quantize-cache", "-v"];
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_reel"))
            .args(args)
            .args(FLAGS)
            .args(["--force", "-o", &out])
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let first = std::fs::read(format!("{out}00008.png")).unwrap();
        (first, said.contains("kept by an earlier run"))
    };
    let kept = || std::fs::read_dir(format!("{cache}/reel")).unwrap().count();
    let (first, again) = (run("q8_0"), run("q8_0"));
    assert_eq!((first.1, again.1, kept()), (false, true, 2));
    assert!(first.0 == again.0);
    // another type is another file, and so is another time of the source
    assert!(!run("q4_k").1);
    assert_eq!(kept(), 4);
    std::fs::write(&all, embedded::TINY).unwrap();
    assert!(!run("q8_0").1);
    assert_eq!(kept(), 6);
}

/// A cache that cannot be written is refused before anything is computed, and a plan makes no folder.
#[test]
fn a_cache_that_cannot_be_written_is_refused_at_once() {
    let scratch = Scratch::new("no-cache");
    let run = |cache: &str, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_reel"));
        command.args(["generate", "a red ball on the sand", "--quantize", "q8_0", "--quantize-cache"]).args(FLAGS);
        command.args(["-o", &scratch.path("a.gif")]).args(more).env("XDG_CACHE_HOME", cache).env_remove("REEL_MODEL");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let model = scratch.path("all.safetensors");
    std::fs::write(&model, embedded::TINY).unwrap();
    let file = scratch.path("file");
    std::fs::write(&file, "").unwrap();
    for cache in [file.clone(), format!("{file}/below")] {
        let (code, said) = run(&cache, &["--model", &model]);
        assert!(code == Some(2) && said.contains(&format!("`{cache}/reel`")), "{said}");
        assert!(
            said.contains("--quantize-cache") && said.contains("fix: ") && said.contains("XDG_CACHE_HOME"),
            "{said}"
        );
    }
    assert!(!std::path::Path::new(&scratch.path("a.gif")).exists());
    let cache = scratch.path("cache");
    let (code, said) = run(&cache, &["--model", &model, "--dry-run"]);
    assert!(code == Some(0) && !std::path::Path::new(&cache).exists(), "{said}");
}

/// Blocks that do not stay in memory are quantised once, into a file that nobody sees again; and the clip is the same.
#[test]
#[cfg(unix)]
fn blocks_that_come_and_go_are_quantised_once() {
    let scratch = Scratch::new("anew");
    let cache = scratch.path("cache");
    let run = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_reel"));
        command.args(["generate", "a red ball on the sand", "--model", "tiny", "--quantize", "q8_0"]);
        // so many tokens and such small tiles that denoising takes most
        command.args(["--size", "320x256", "--frames", "17", "--steps", "1", "--seed", "7", "--guidance", "1"]);
        command.args(["--vae-tile", "64x64"]).args(more).env("XDG_CACHE_HOME", &cache);
        command.env("XDG_STATE_HOME", scratch.path("state")).env_remove("REEL_MODEL");
        let output = command.output().unwrap();
        // a plan that does not fit is printed, and refused
        let fine = output.status.success() || output.status.code() == Some(2) && more.contains(&"--json");
        assert!(fine, "{}", String::from_utf8_lossy(&output.stderr));
        output
    };
    let plan = |memory: u64| -> serde_json::Value {
        let memory = memory.to_string();
        serde_json::from_slice(&run(&["--dry-run", "--json", "--memory", &memory]).stdout).unwrap()
    };
    let most = plan(8 << 30)["memory"].as_u64().unwrap();
    let cut = (1..150).map(|i| most - i * (most / 200)).find(|&memory| {
        let plan = plan(memory);
        plan["fits"] == true && plan["resident_blocks"].as_u64() < plan["blocks"].as_u64()
    });
    let cut = cut.expect("no memory lets blocks come and go").to_string();
    let table = run(&["--dry-run", "--memory", &cut]).stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains("quantised once, into") && table.contains(&cache), "{table}");
    let clip = |name: &str, more: &[&str]| {
        let out = scratch.path(name);
        let said = run(&[&["--progress", "json", "-o", &out], more].concat()).stderr;
        let made = String::from_utf8(said).unwrap().lines().filter(|line| line.contains("\"quantise\"")).count();
        (std::fs::read(out).unwrap(), made > 0)
    };
    let (whole, streamed) = (clip("a.png", &[]), clip("b.png", &["--memory", &cut]));
    assert_eq!((whole.1, streamed.1), (false, true));
    assert!(whole.0 == streamed.0);
    let left: Vec<_> = std::fs::read_dir(format!("{cache}/reel")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
