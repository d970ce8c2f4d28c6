//! `reel selftest`: prompt to file on the embedded model, against the frames that it gave where it was made.

use super::{Common, print, version};
use crate::embedded;
use crate::job::host::Host;
use crate::job::request::Request;
use crate::pipeline::Job;
use crate::platform::cancel::Cancelled;
use crate::platform::fault::{Fault, Mark};
use crate::platform::files::Scratch;
use crate::platform::progress::{Progress, counted, human_seconds};
use anyhow::{Context, Result, anyhow, ensure};
use image::AnimationDecoder;
use std::io::Cursor;
use std::path::Path;
use std::time::Instant;

/// The clip that [`request`] gave on the machine where the embedded model was last replaced. Remade by
/// `reel generate "a red ball bounces on green grass" --seed 7 --dtype f32 -o src/embedded/selftest.png --force`.
const REFERENCE: &[u8] = include_bytes!("../embedded/selftest.png");

/// Another CPU adds up in another order, which moves single values by one; a wrong kernel lands far below.
const LEAST_PSNR: f64 = 45.0;

/// Make a clip with the built-in model, compare it, and say what this machine and build can do
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
}

/// The machine's part: on the CPU, into `out`.
fn host(out: &Path) -> Host {
    Host { out: Some(out.to_path_buf()), device: Some("cpu".to_string()), ..Host::default() }
}

fn request() -> Request {
    Request {
        prompt: "a red ball bounces on green grass".to_string(),
        model: Some(embedded::NAME.to_string()),
        seed: Some(7),
        dtype: crate::platform::device::Dtype::F32,
        ..Default::default()
    }
}

pub fn run(args: Args, progress: &Progress) -> Result<()> {
    args.common.start(progress)?;
    let (report, psnr) = test(&progress.silenced()).fault(Fault::Machine)?;
    print(report.as_bytes())?;
    if psnr < LEAST_PSNR {
        return Err(anyhow!(
            "the clip is {psnr:.1} dB from the reference, and at least {LEAST_PSNR} was expected: this build computes something else\n  \
             fix: report it with what is printed above"
        ))
        .fault(Fault::Machine);
    }
    print(b"all is well\n")
}

/// What to print, and how far the clip is from the reference.
/// - `silent`: says nothing, and stops the test.
fn test(silent: &Progress) -> Result<(String, f64)> {
    let scratch = Scratch::create("reel-selftest")?;
    let mut report = format!("reel {}\n{}\n", version(), counted(rayon::current_num_threads(), "threads"));
    let begun = Instant::now();
    let out = scratch.path().join("clip.png");
    Job::prepare(&request(), &host(&out), silent)?.run(silent)?;
    let seconds = begun.elapsed().as_secs_f64();
    let made = std::fs::read(&out).with_context(|| format!("cannot read `{}`", out.display()))?;
    let psnr = psnr(&decode(&made)?, &decode(REFERENCE)?)?;
    report += &format!("prompt to file: {} on the CPU in f32, ", human_seconds(seconds));
    report += &if psnr.is_infinite() {
        "identical to the reference\n".to_string()
    } else {
        format!("{psnr:.1} dB from the reference\n")
    };
    if let Some(peak) = crate::platform::machine::peak_memory() {
        report += &format!("peak memory: {} MB\n", peak / 1_000_000);
    }
    for (what, built, open) in [("cuda", cfg!(feature = "cuda"), "cuda"), ("metal", cfg!(feature = "metal"), "metal")] {
        let state = match crate::platform::device::open(open, Default::default()) {
            _ if !built => "not in this build".to_string(),
            Ok(_) => "opens".to_string(),
            Err(e) => format!("does not open: {}", crate::platform::device::first_line(&e.root_cause())),
        };
        report += &format!("{what}: {state}\n");
    }
    for extension in ["mp4", "webp", "gif"] {
        let out = scratch.path().join(format!("clip.{extension}"));
        let state = match Job::prepare(&request(), &host(&out), silent).and_then(|job| job.run(silent)) {
            Ok(()) => format!("{} bytes", std::fs::metadata(&out).map(|m| m.len()).unwrap_or(0)),
            Err(e) if Cancelled::caused(&e) => return Err(e),
            Err(e) => format!("cannot be written: {}", e.to_string().lines().next().unwrap_or_default()),
        };
        report += &format!(".{extension}: {state}\n");
    }
    Ok((report, psnr))
}

fn decode(png: &[u8]) -> Result<Vec<u8>> {
    let frames = image::codecs::png::PngDecoder::new(Cursor::new(png))?.apng()?.into_frames();
    let mut pixels = vec![];
    for frame in frames {
        pixels.extend(frame?.into_buffer().into_raw());
    }
    Ok(pixels)
}

fn psnr(got: &[u8], want: &[u8]) -> Result<f64> {
    ensure!(got.len() == want.len(), "the clip has {} bytes of pixels, and {} were expected", got.len(), want.len());
    let square: f64 = got.iter().zip(want).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    Ok(10.0 * (255.0 * 255.0 / (square / got.len() as f64)).log10())
}
