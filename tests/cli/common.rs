//! Running the program, and broken checkpoints made from the embedded model.

use reel::models::ltx::config::VaeConfig;
use reel::models::ltx::names;
use reel::models::text::open::TEXT_PREFIX;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of its own, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("reel-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Every file and folder below, with sizes: what "nothing written" is judged by.
    pub fn listing(&self) -> Vec<(PathBuf, u64)> {
        fn walk(folder: &Path, found: &mut Vec<(PathBuf, u64)>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                    found.push((path, 0));
                } else {
                    let size = path.metadata().map_or(0, |m| m.len());
                    found.push((path, size));
                }
            }
        }
        let mut found = vec![];
        walk(&self.0, &mut found);
        found.sort();
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program in `folder`, free of what the caller's environment says, with nothing pulled.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(args).current_dir(folder).env_remove("REEL_MODEL").stdin(Stdio::null());
    command.env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE").env("HF_HUB_OFFLINE", "1");
    for home in ["HF_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        command.env(home, folder.join("no-home"));
    }
    // the machine's own history is none of the tests' business
    command.env("XDG_STATE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("state"));
    // a backtrace in an error shows only where one is asked for
    command.env("RUST_BACKTRACE", "1");
    command
}

pub fn reel(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `generate` as short as it can be, with more arguments.
pub fn short<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["generate", "a red ball", "--seed", "7", "--steps", "1", "--guidance", "1", "--size", "32x32"];
    args.extend(["--frames", "5"]);
    args.extend(more);
    args
}

/// Judges every case of a table, so that one failure does not hide the others.
pub fn each<T>(cases: &[T], judge: impl Fn(&T)) {
    let fails = |case: &&T| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(case))).is_err();
    let failed = cases.iter().filter(fails).count();
    assert_eq!(failed, 0, "of {} cases", cases.len());
}

/// Checks one refusal: exit code 2, nothing on standard output, nothing written, one to three lines that begin with `error:`
/// and hold all of `words`.
pub fn refused(scratch: &Scratch, args: &[&str], words: &[&str]) {
    let before = scratch.listing();
    let output = reel(&scratch.0, args);
    judge(args, &output, 2, words);
    assert_eq!(scratch.listing(), before, "{args:?} wrote something");
}

pub fn judge(args: &[&str], output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    if std::env::var_os("REEL_TEST_SHOW").is_some() {
        println!("$ reel {}\n{said}", args.join(" "));
    }
    // remarks may stand before the error
    let at = said.lines().position(|line| line.starts_with("error: "));
    let at = at.unwrap_or_else(|| panic!("{args:?}: no error in\n{said}"));
    let error: Vec<&str> = said.lines().skip(at).collect();
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{said}");
    assert!(output.stdout.is_empty(), "{args:?} wrote to standard output");
    assert!((1..=3).contains(&error.len()), "{args:?}: {} lines\n{said}", error.len());
    assert!(error.iter().all(|line| !line.trim().is_empty()), "{args:?}: an empty line\n{said}");
    for word in ["panicked", "backtrace", "candle_core::", "Err(", "::with_"] {
        assert!(!said.contains(word), "{args:?}: `{word}` in\n{said}");
    }
    for word in words {
        assert!(error.join("\n").contains(word), "{args:?}: no `{word}` in\n{said}");
    }
}

/// A safetensors file in parts, to be broken and put together again.
#[derive(Clone)]
pub struct Model {
    pub metadata: Map<String, Value>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: &'static [u8],
}

impl Model {
    /// The embedded model.
    pub fn tiny() -> Self {
        let file = reel::embedded::TINY;
        let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
        let mut model = Self { metadata: Map::new(), tensors: vec![] };
        for (name, value) in header {
            if name == "__metadata__" {
                model.metadata = value.as_object().unwrap().clone();
                continue;
            }
            let numbers = |v: &Value| -> Vec<usize> { serde_json::from_value(v.clone()).unwrap() };
            let range = numbers(&value["data_offsets"]);
            model.tensors.push(Tensor {
                name,
                dtype: value["dtype"].as_str().unwrap().to_string(),
                shape: numbers(&value["shape"]),
                bytes: &file[start + range[0]..start + range[1]],
            });
        }
        model
    }

    /// The `config` in the header.
    pub fn config(&self) -> Value {
        serde_json::from_str(self.metadata["config"].as_str().unwrap()).unwrap()
    }

    pub fn set_config(&mut self, config: &Value) {
        self.metadata.insert("config".into(), config.to_string().into());
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub fn header(&self) -> Value {
        let mut header = Map::new();
        header.insert("__metadata__".into(), self.metadata.clone().into());
        let mut end = 0;
        for t in &self.tensors {
            let offsets = [end, end + t.bytes.len()];
            header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}));
            end += t.bytes.len();
        }
        header.into()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let header = self.header().to_string().into_bytes();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        self.tensors.iter().for_each(|t| file.extend(t.bytes));
        file
    }

    /// The tensors that `rename` gives a name, in a file without a header of its own.
    fn part(&self, rename: impl Fn(&str) -> Option<String>) -> Vec<u8> {
        let tensors = self.tensors.iter().filter_map(|t| Some(Tensor { name: rename(&t.name)?, ..t.clone() }));
        Self { metadata: Map::new(), tensors: tensors.collect() }.bytes()
    }

    /// The same as a diffusers directory.
    pub fn directory(&self, scratch: &Scratch, name: &str) -> PathBuf {
        let config = self.config();
        let vae = VaeConfig::parse(&config["vae"], "vae").unwrap();
        let file = |path: &str, bytes: Vec<u8>| scratch.write(&format!("{name}/{path}"), bytes);
        let json = |path: &str, key: &str| scratch.write(&format!("{name}/{path}"), config[key].to_string());
        json("transformer/config.json", "transformer");
        json("vae/config.json", "vae");
        json("text_encoder/config.json", "text_encoder");
        json("scheduler/scheduler_config.json", "scheduler");
        scratch.write(&format!("{name}/model_index.json"), json!({"_class_name": "LTXConditionPipeline"}).to_string());
        scratch.write(&format!("{name}/tokenizer/tokenizer.json"), self.metadata["tokenizer"].as_str().unwrap());
        file(
            "transformer/diffusion_pytorch_model.safetensors",
            self.part(|n| n.strip_prefix(names::TRANSFORMER_PREFIX).map(names::transformer_from_official)),
        );
        file(
            "vae/diffusion_pytorch_model.safetensors",
            self.part(|n| names::vae_from_official(n.strip_prefix(names::VAE_PREFIX)?, &vae)),
        );
        file("text_encoder/model.safetensors", self.part(|n| n.strip_prefix(TEXT_PREFIX).map(str::to_string)));
        scratch.path(name)
    }
}
