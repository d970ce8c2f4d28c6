//! `reel generate`.

use super::help;
use super::making::{Making, Own, fetch, print_plan, prompt};
use super::number::{real, whole};
use crate::job::request::Keyframe;
use crate::job::windows::Direction;
use crate::pipeline::Job;
use crate::pipeline::absent::Absent;
use crate::platform::progress::Progress;
use crate::video::resize::{Filter, Fit};
use anyhow::Result;
use std::path::PathBuf;

/// Make a video from a prompt, and from stills and clips where there are any
#[derive(clap::Args)]
#[command(after_help = help::generate(), after_long_help = help::generate_long())]
pub struct Args {
    /// What the video shows; `-` reads standard input
    prompt: String,
    /// A still for the first frame
    #[arg(long, value_name = "FILE", help_heading = "Stills and clips")]
    image: Option<PathBuf>,
    /// A still for the last frame
    #[arg(long, value_name = "FILE", help_heading = "Stills and clips", hide_short_help = true)]
    last_image: Option<PathBuf>,
    /// A still or a clip from FRAME on (negative: from the end), held with strength X [default: 1]; repeatable
    #[arg(long, value_name = "FILE@FRAME[:X]", help_heading = "Stills and clips", hide_short_help = true)]
    keyframe: Vec<Keyframe>,
    /// How stills and clips are fitted to the frame
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "HOW",
        help_heading = "Stills and clips",
        hide_short_help = true
    )]
    fit: Fit,
    /// Frames a second [default: the model's; built in: 8]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = real("fps"), help_heading = "Clip", hide_short_help = true)]
    fps: Option<f64>,
    /// Enlarge what the model made N times on output, 1 to 16 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<usize>("scale"), help_heading = "Output")]
    scale: Option<usize>,
    /// How it is enlarged [default: lanczos]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Output", hide_short_help = true)]
    scale_filter: Option<Filter>,
    #[command(flatten)]
    pub making: Making,
}

pub fn run(args: Args, progress: &Progress) -> Result<()> {
    args.making.common.start(progress)?;
    let pull = args.making.pull;
    let (dry_run, json) = (args.making.dry_run, args.making.json);
    let Args { prompt: text, image, last_image, keyframe, fit, fps, scale, scale_filter, making } = args;
    let own = Own { image, last_image, keyframe, fit, fps, scale, scale_filter };
    let (request, host) = prompt(text).and_then(|text| making.request(text, own))?;
    if dry_run && let Some(absent) = Absent::find(&request, &host)? {
        let plan = absent.plan(&request, &[], Direction::Forward, None);
        let (plan, report) = plan?;
        return print_plan(&plan, &report, json);
    }
    fetch(pull && !dry_run, &request, &host, progress)?;
    let job = Job::prepare(&request, &host, progress)?;
    if dry_run {
        let (plan, report) = job.plan();
        return print_plan(plan, &report, json);
    }
    job.fits()?;
    job.run(progress)
}
