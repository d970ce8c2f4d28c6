//! Whole runs by Lightricks' recipe, as an entry of a catalogue asks for it, against that recipe in float64
//! (`goldens/make_goldens.py`, `makers`). In a process of its own, for a program reads its catalogue once.

use crate::common::{Golden, Scratch, alone, golden_path, numbers};
use candle_core::Tensor;
use reel::hub::catalogue::{self, Facts};
use reel::job::convention::Convention;
use reel::job::host::Host;
use reel::job::request::{Keyframe, Request};
use reel::job::windows::Direction;
use reel::pipeline::Prepared;
use reel::pipeline::session::{Keep, Session};
use reel::platform::progress::Progress;
use serde_json::{Value, json};
use std::path::Path;

/// Decibels below the largest value. Frames decoded from these runs lie 90 to 95 dB from float64's, with single values off by 1, and
/// 14 to 37 dB where they are made as in diffusers.
const LEAST: f64 = 80.0;
const OTHERWISE: f64 = 60.0;

/// A golden's checkpoint under another name, with changes to the configuration in its header.
fn renamed(model: &str, name: &str, changes: &Value, to: &str) {
    let file = std::fs::read(golden_path(model)).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let metadata = &mut header["__metadata__"];
    let mut config: Value = serde_json::from_str(metadata["config"].as_str().unwrap()).unwrap();
    for (key, value) in changes.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    metadata["config"] = json!(config.to_string());
    metadata["name"] = json!(name);
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let all = [&(header.len() as u64).to_le_bytes()[..], &header, &file[8 + length..]].concat();
    std::fs::write(to, all).unwrap();
}

/// An entry that a file of this name takes, as TOML. Numbers, words and lists are written alike in JSON.
fn entry(name: &str, run: &Value) -> String {
    let run: Vec<String> = run.as_object().unwrap().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let head = "about = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\n";
    format!("[{name}]\n{head}[{name}.match]\nname = '{name}'\n[{name}.run]\n{}", run.concat())
}

/// As in `make_goldens.py`.
fn picture(width: u32, height: u32, frame: usize) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        let value = |c: f64| {
            let (x, y) = (x as f64, y as f64);
            let wave = (0.11 * x + 0.4 * c + 0.3 * frame as f64).sin() + (0.17 * y - 0.2 * c).cos();
            (127.5 + 60.0 * wave).round_ties_even() as u8
        };
        image::Rgb([0.0, 1.0, 2.0].map(value))
    })
}

/// What the decoder reads after a run, (f, h, w, c).
fn latents(request: &Request) -> Tensor {
    let silent = Progress::silent();
    let session = Session::open(request, &Host::default(), Keep::Nothing, &silent).unwrap();
    let mut prepared = Prepared::new(&session, request, None, &[], Direction::Forward, &silent).unwrap();
    prepared.forecast.watch(); // else its times go into the machine's history
    prepared.latents(&silent).unwrap()[0].squeeze(0).unwrap()
}

/// How far `got` lies from `want`, in decibels below the largest value.
fn decibels(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (numbers(got), numbers(want));
    let square: f64 = got.iter().zip(&want).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
    let peak = want.iter().fold(0f32, |a, b| a.max(b.abs())) as f64;
    10.0 * (peak * peak / (square / want.len() as f64)).log10()
}

fn request(case: &Value, scratch: &Scratch, name: &str) -> Request {
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let mut keyframe = vec![];
    for (i, held) in case["held"].as_array().into_iter().flatten().enumerate() {
        let folder = scratch.path(&format!("{name}-{i}"));
        std::fs::create_dir_all(&folder).unwrap();
        for frame in 0..number(&held["frames"]) {
            let made = picture(number(&held["size"][0]) as u32, number(&held["size"][1]) as u32, frame);
            made.save(Path::new(&folder).join(format!("{frame:05}.png"))).unwrap();
        }
        let frame = case["put"].get(i).unwrap_or(&held["frame"]).as_i64().unwrap();
        keyframe.push(Keyframe { file: folder.into(), frame, strength: held["strength"].as_f64().unwrap() });
    }
    Request {
        prompt: case["prompt"].as_str().unwrap().to_string(),
        model: Some(scratch.path(&format!("{name}.safetensors"))),
        size: Some((number(&case["size"][0]), number(&case["size"][1]))),
        frames: Some(number(&case["frames"])),
        fps: case["fps"].as_f64(),
        seed: case["seed"].as_u64(),
        keyframe,
        ..Request::default()
    }
}

#[test]
fn runs_are_their_makers() {
    alone("makers::runs_with_a_catalogue_of_their_own");
}

#[test]
#[ignore = "in a process of its own, by `runs_are_their_makers`"]
fn runs_with_a_catalogue_of_their_own() {
    let golden = Golden::open("makers");
    let scratch = Scratch::new("makers");
    let cases = golden.json("cases");
    let mut own = String::new();
    for (name, case) in cases.as_object().unwrap() {
        renamed(case["model"].as_str().unwrap(), name, &case["header"], &scratch.path(&format!("{name}.safetensors")));
        let mut run = case["run"].clone();
        run["recipe"] = json!("lightricks");
        own += &entry(name, &run);
    }
    let text = "pipeline_095";
    renamed(text, "says_text", &json!({}), &scratch.path("says_text.safetensors"));
    own += &entry("says_text", &json!({"steps": 3, "guidance": 1, "convention": "text"}));
    own += &entry("mine", &json!({"steps": 3})).replace("name = 'mine'", "name = 'tiny'");
    let path = scratch.path("weights.toml");
    std::fs::write(&path, own).unwrap();
    catalogue::add_own(Path::new(&path)).unwrap();

    for (name, case) in cases.as_object().unwrap() {
        let request = request(case, &scratch, name);
        let want = golden.at(&format!("out.{name}")).squeeze(0).unwrap().permute((1, 2, 3, 0)).unwrap();
        let got = decibels(&latents(&request), &want);
        let convention = if case["model"] == text { Convention::Condition } else { Convention::Text };
        let otherwise = decibels(&latents(&Request { convention: Some(convention), ..request }), &want);
        println!("measured: {name}: {got:.1} dB; as diffusers {otherwise:.1} dB");
        assert!(got >= LEAST, "{name}: {got:.1} dB");
        assert!(otherwise <= OTHERWISE, "{name}: as diffusers it lies only {otherwise:.1} dB away");
    }

    // an entry's convention is the flag's
    let plain = json!({"prompt": "a ball", "size": [64, 32], "frames": 9, "fps": 25, "seed": 5});
    let said = request(&plain, &scratch, "says_text");
    let flagged = |convention| latents(&Request { convention: Some(convention), ..said.clone() });
    let bits = |x: &Tensor| numbers(x).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let said = bits(&latents(&said));
    assert!(said == bits(&flagged(Convention::Text)) && said != bits(&flagged(Convention::Condition)));

    // the user's own entry goes before the built-in one that a header's name means as well
    let tiny = Facts {
        name: Some("tiny"),
        vae: "0.9.5",
        layers: 1,
        heads: 1,
        head_dim: 1,
        allowed_steps: None,
        bytes: None,
        called: None,
    };
    assert_eq!(catalogue::matching(&tiny).map(|entry| &*entry.name), Some("mine"));
}
