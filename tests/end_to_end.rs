//! Prompt to frames through the program, against what diffusers' pipelines make of the same tiny checkpoint, prompt and seed.

use crate::common::{Golden, generate, golden_path};

/// Diffusers in float64 lies 82 to 96 dB from itself in float32, with single values off by 1: the same computation in another
/// order may be this far away, and nothing else comes near.
const LEAST_PSNR: f64 = 70.0;
const WORST_DIFFERENCE: u8 = 2;

fn check(name: &str) {
    let golden = Golden::open(name);
    let cases = golden.json("cases");
    for (case, told) in cases.as_object().unwrap() {
        let flags: Vec<&str> = told["flags"].as_array().unwrap().iter().map(|flag| flag.as_str().unwrap()).collect();
        let clip = generate(golden_path(name).to_str().unwrap(), told["prompt"].as_str().unwrap(), &flags);
        let want = golden.at(&format!("out.{case}"));
        assert_eq!([clip.frames.len(), clip.height, clip.width, 3], want.dims(), "{name}, {case}");
        let (got, want) = (clip.frames.concat(), want.flatten_all().unwrap().to_vec1::<u8>().unwrap());
        let off = |(a, b): (&u8, &u8)| a.abs_diff(*b);
        let worst = got.iter().zip(&want).map(off).max().unwrap();
        let square: f64 = got.iter().zip(&want).map(|pair| (off(pair) as f64).powi(2)).sum();
        let psnr = 10.0 * (255.0 * 255.0 / (square / got.len() as f64)).log10();
        let measured = format!("{name}, {case}: {psnr:.1} dB, worst difference {worst}");
        println!("measured: {measured}");
        assert!(
            psnr >= LEAST_PSNR && worst <= WORST_DIFFERENCE,
            "{measured}; limits {LEAST_PSNR} dB and {WORST_DIFFERENCE}"
        );
    }
    assert!(!cases.as_object().unwrap().is_empty());
}

/// Guidance 3 against a negative prompt, rescaled; the schedule shifted by tokens.
#[test]
fn text_convention() {
    check("pipeline_090");
}

/// The decoder's timestep, noise mixed into the latents, and noise drawn between the decoder's layers.
#[test]
fn text_convention_with_decode_noise() {
    check("pipeline_091");
}

/// Explicit levels without guidance; the linear-quadratic schedule with it.
#[test]
fn condition_convention() {
    check("pipeline_095");
}
