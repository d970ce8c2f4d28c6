//! What the tests share: goldens opened, errors measured, the program run.

use candle_core::{DType, Device, Tensor};
use reel::nn::vars::Vars;
use reel::weights::open::Tensors;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest error of a part, relative to its largest expected value. Measured: up to 2.5e-6, from sums in another order than
/// torch's. In the reference itself the other GELU moves these outputs by 8e-5 to 7e-4, bf16 layers by 2e-3 and more, another
/// epsilon of the q and k norms or of the VAE's pixel norm by 2.9e-3 and more. Not seen at any limit: the epsilon of the
/// transformer's last norm and of the VAE's `norm3` (1e-5 for 1e-6 moves the outputs by at most 4e-6).
pub const RELATIVE_ERROR: f32 = 2e-5;

/// A file of `tests/goldens`; `make_goldens.py` says what is in it.
pub struct Golden {
    file: Tensors,
    data: HashMap<String, Tensor>,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = golden_path(name);
        Self {
            file: Tensors::open(std::slice::from_ref(&path)).unwrap(),
            data: candle_core::safetensors::load(&path, &Device::Cpu).unwrap(),
        }
    }

    /// The part's config.json.
    pub fn config(&self) -> Value {
        self.json("config")
    }

    pub fn json(&self, key: &str) -> Value {
        serde_json::from_str(self.text(key)).unwrap()
    }

    pub fn text(&self, key: &str) -> &str {
        self.file.metadata(key).unwrap()
    }

    /// The part's weights, kept as bf16 or widened to `stored`, under the names that a checkpoint gives them.
    pub fn weights(&self, stored: Option<DType>) -> Vars {
        let weights = self.file.renamed(|name| name.strip_prefix("weights.").map(String::from));
        weights.load(stored, DType::F32, &Device::Cpu)
    }

    /// `in.*` or `out.*`.
    pub fn at(&self, name: &str) -> Tensor {
        self.data.get(name).unwrap_or_else(|| panic!("there is no `{name}` in {}", self.file.what())).clone()
    }

    pub fn has(&self, name: &str) -> bool {
        self.data.contains_key(name)
    }

    pub fn numbers(&self, name: &str) -> Vec<f32> {
        numbers(&self.at(name))
    }
}

pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/{name}.safetensors"))
}

pub fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub fn assert_close(part: &str, got: &Tensor, want: &Tensor) {
    assert_within(part, got, want, RELATIVE_ERROR);
}

pub fn assert_within(part: &str, got: &Tensor, want: &Tensor, limit: f32) {
    assert_eq!(got.dims(), want.dims(), "{part}");
    // not `f32::max`, which passes over NaN
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a: f32, v| if v <= a { a } else { v });
    let (got, want) = (numbers(got), numbers(want));
    let worst = largest(&mut got.iter().zip(&want).map(|(a, b)| (a - b).abs()));
    let error = worst / largest(&mut want.iter().map(|v| v.abs()));
    println!("measured: {part}: relative error {error:.1e}, limit {limit:.0e}");
    assert!(error <= limit, "{part}: relative error {error:.1e}, limit {limit:.0e}; worst difference {worst:.1e}");
}

/// A folder that goes when the test ends.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        // tests run beside each other in one process
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&dir); // of a killed run
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where runs of the tests leave their history.
fn state() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("state")
}

/// Runs the program.
pub fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    // no model, no catalogue and no history of whoever runs the tests
    command.args(args).env_remove("REEL_MODEL").env("XDG_CONFIG_HOME", "no-home").env("XDG_STATE_HOME", state());
    command.output().unwrap()
}

/// Runs the program; it has to succeed.
pub fn reel(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "reel {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs one of the ignored tests in a process of its own: what it measures or sets is the process's.
pub fn alone(test: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--ignored", "--nocapture"]).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    println!("{said}");
    assert!(output.status.success() && said.contains("test result: ok. 1 passed"), "{test}");
}

/// Frames of a clip, packed RGB.
#[derive(PartialEq)]
pub struct Clip {
    pub width: usize,
    pub height: usize,
    pub frames: Vec<Vec<u8>>,
}

/// `reel generate PROMPT --model MODEL FLAGS`, as frames.
pub fn generate(model: &str, prompt: &str, flags: &[&str]) -> Clip {
    let scratch = Scratch::new("frames");
    let out = scratch.path("clip/");
    reel(&[&["generate", prompt, "--model", model, "--out", &out, "--quiet"], flags].concat());
    let mut files: Vec<PathBuf> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let pictures: Vec<_> = files.iter().map(|file| image::open(file).unwrap().into_rgb8()).collect();
    let (width, height) = pictures[0].dimensions();
    assert!(pictures.iter().all(|p| p.dimensions() == (width, height)));
    let frames = pictures.into_iter().map(|p| p.into_raw()).collect();
    Clip { width: width as usize, height: height as usize, frames }
}
