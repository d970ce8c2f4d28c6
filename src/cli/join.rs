//! `reel extend`, `reel bridge` and `reel loop`.

use super::help;
use super::making::{Making, Own, fetch, print_plan, prompt};
use super::number::{real, whole};
use crate::pipeline::join::{Asked, Join};
use crate::platform::progress::Progress;
use anyhow::Result;
use std::path::PathBuf;

/// Flags of all three.
#[derive(clap::Args)]
pub struct Joining {
    /// Frames of the footage that the model sees [default: as many as help]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<usize>("context"), help_heading = "Stills and clips", hide_short_help = true)]
    context: Option<usize>,
    /// Frames a second of footage that does not say: stills and folders of frames [default: the model's]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = real("fps"), help_heading = "Clip", hide_short_help = true)]
    fps: Option<f64>,
    /// Leave the colours of the new part as they come
    #[arg(long, help_heading = "Stills and clips", hide_short_help = true)]
    no_colour_match: bool,
    #[command(flatten)]
    pub making: Making,
}

/// Continue a clip, or make what came before it, and write the joined clip
#[derive(clap::Args)]
#[command(after_help = help::extend())]
pub struct Extend {
    /// Video file, animation or directory of frames
    clip: PathBuf,
    /// What happens; `-` reads standard input
    prompt: String,
    /// Make what came before
    #[arg(long, help_heading = "Stills and clips")]
    before: bool,
    #[command(flatten)]
    pub joining: Joining,
}

/// Fill the gap between two clips or stills and write all of it
#[derive(clap::Args)]
#[command(after_help = help::bridge())]
pub struct Bridge {
    /// What it begins with
    a: PathBuf,
    /// What it ends with
    b: PathBuf,
    /// What happens between them; `-` reads standard input
    prompt: String,
    #[command(flatten)]
    pub joining: Joining,
}

/// Lead the end of a clip back into its start
#[derive(clap::Args)]
#[command(after_help = help::close())]
pub struct Loop {
    /// Video file, animation or directory of frames
    clip: PathBuf,
    /// What happens on the way; `-` reads standard input
    #[arg(default_value = "")]
    prompt: String,
    #[command(flatten)]
    pub joining: Joining,
}

pub fn extend(args: Extend, progress: &Progress) -> Result<()> {
    let (before, after) = if args.before { (None, Some(args.clip)) } else { (Some(args.clip), None) };
    join(args.prompt, args.joining, before, after, false, progress)
}

pub fn bridge(args: Bridge, progress: &Progress) -> Result<()> {
    join(args.prompt, args.joining, Some(args.a), Some(args.b), false, progress)
}

pub fn close(args: Loop, progress: &Progress) -> Result<()> {
    join(args.prompt, args.joining, Some(args.clip.clone()), Some(args.clip), true, progress)
}

fn join(
    text: String,
    joining: Joining,
    before: Option<PathBuf>,
    after: Option<PathBuf>,
    closed: bool,
    progress: &Progress,
) -> Result<()> {
    joining.making.common.start(progress)?;
    let pull = joining.making.pull;
    let (dry_run, json) = (joining.making.dry_run, joining.making.json);
    let Joining { context, fps, no_colour_match, making } = joining;
    let asked = Asked { before, after, closed, context, colour_match: !no_colour_match };
    let own = Own { fps, ..Own::default() };
    let (request, host) = prompt(text).and_then(|text| making.request(text, own))?;
    if dry_run && let Some((plan, report)) = Join::plan_absent(&request, &host, &asked, progress)? {
        return print_plan(&plan, &report, json);
    }
    fetch(pull && !dry_run, &request, &host, progress)?;
    let mut join = Join::prepare(&request, &host, &asked, progress)?;
    if dry_run {
        let (plan, report) = join.plan();
        return print_plan(plan, &report, json);
    }
    join.fits().and_then(|()| join.read(progress))?;
    join.run(progress)
}
