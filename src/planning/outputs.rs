//! Where a clip goes: what `-o` means for a request, and that it takes nothing away which the request reads.

use crate::job::host::Host;
use crate::job::request::Request;
use crate::planning::settings::Settings;
use crate::video::write::{Format, Target, is_folder};
use anyhow::{Result, bail};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Where a request's clip goes.
pub fn target(request: &Request, host: &Host, settings: &Settings) -> Result<Target> {
    Target::parse(path(request, host, settings.seed))
}

/// Where a request's clip goes whose seed is yet to be drawn: `SEED` stands for it. `None` where the name has no such seed.
pub fn unnamed(request: &Request, host: &Host) -> Option<PathBuf> {
    let named = host.out.as_ref().is_some_and(|path| !is_folder(path));
    (!named && request.seed.is_none()).then(|| path(request, host, "SEED"))
}

fn path(request: &Request, host: &Host, seed: impl Display) -> PathBuf {
    let name = default_name(&request.prompt, seed);
    match &host.out {
        Some(path) if is_folder(path) => Path::new(path).join(name),
        Some(path) => path.into(),
        None => name.into(),
    }
}

/// Makes a file name from the prompt's first words and the seed.
pub fn default_name(prompt: &str, seed: impl Display) -> String {
    const LONGEST: usize = 40;
    let mut name = String::new();
    for word in prompt.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        if name.len() + word.len() > LONGEST {
            break;
        }
        name.push_str(&word.to_lowercase());
        name.push('-');
    }
    let extension = if cfg!(feature = "h264") { "mp4" } else { "webp" };
    format!("{name}{seed}.{extension}")
}

/// Checks an output that is named, before anything else is looked at. One whose name waits for the seed is checked later, as
/// [`check`] does.
/// - `clips`: footage that is read besides the request's own files.
pub fn check_named(request: &Request, host: &Host, clips: &[&Path]) -> Result<()> {
    match &host.out {
        Some(path) if !is_folder(path) => check(request, host, &Target::parse(path)?, clips),
        _ => Ok(()),
    }
}

/// Checks an output against what is there already and against what the request reads.
/// - `clips`: footage that is read besides the request's own files.
/// - Errors where it is, holds or is part of a file that is read, and as [`Target::check_place`] does.
pub fn check(request: &Request, host: &Host, target: &Target, clips: &[&Path]) -> Result<()> {
    if target.format == Format::Y4m {
        return target.check_place(host.force);
    }
    let Ok(out) = target.path.canonicalize() else {
        return target.check_place(host.force); // what is not there yet is nobody's input
    };
    for Input { path, flag, is_picture } in inputs(request, clips) {
        let Ok(input) = path.canonicalize() else { continue }; // whoever reads it says why not
        let (name, own) = (target.path.display(), if is_picture { "clip" } else { "model" });
        let read = flag.map(|flag| format!(", which {flag} reads")).unwrap_or_default();
        if input == out || is_same_file(&input, &out) {
            bail!("the output `{name}` is the {own} itself{read}\n  fix: give another name with -o");
        }
        if is_picture && target.format == Format::Frames && input.starts_with(&out) {
            bail!(
                "the output `{name}` holds the {own} itself, `{}`{read}\n  fix: give another folder with -o",
                path.display()
            );
        }
        // a picture in a folder of frames is one of them
        if is_picture && matches!(target.format, Format::Apng | Format::Webp) && out.parent() == Some(&*input) {
            bail!(
                "the output `{name}` is part of the {own} itself, `{}`{read}\n  fix: give another name with -o",
                path.display()
            );
        }
    }
    target.check_place(host.force)
}

/// A file or folder that a run reads.
struct Input<'a> {
    path: &'a Path,
    /// None for footage, which is an argument without a flag.
    flag: Option<&'static str>,
    /// Stills and clips, and not weights.
    is_picture: bool,
}

/// Everything that a request reads, as far as it names files: names of the catalogue are paths that do not exist.
fn inputs<'a>(request: &'a Request, clips: &[&'a Path]) -> Vec<Input<'a>> {
    let footage = clips.iter().map(|path| Input { path, flag: None, is_picture: true });
    let of = |is_picture| move |(path, flag): (&'a PathBuf, _)| Input { path, flag: Some(flag), is_picture };
    let stills = [(&request.image, "--image"), (&request.last_image, "--last-image")];
    let stills = stills.into_iter().filter_map(|(path, flag)| Some((path.as_ref()?, flag)));
    let stills = stills.chain(request.keyframe.iter().map(|keyframe| (&keyframe.file, "--keyframe")));
    let parts =
        [(&request.text_encoder, "--text-encoder"), (&request.tokenizer, "--tokenizer"), (&request.vae, "--vae")];
    let parts = parts.into_iter().filter_map(|(path, flag)| Some((path.as_ref()?, flag)));
    let parts = parts.chain(request.lora.iter().map(|lora| (&lora.file, "--lora")));
    let named = [(&request.model, "--model"), (&request.upscaler, "--upscaler")];
    let named = named.into_iter().filter_map(|(name, flag)| Some((Path::new(name.as_ref()?), flag)));
    let named = named.map(|(path, flag)| Input { path, flag: Some(flag), is_picture: false });
    footage.chain(stills.map(of(true))).chain(parts.map(of(false))).chain(named).collect()
}

/// Tells whether two names are of one file, as hard links are.
fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| path.metadata().map(|m| (m.dev(), m.ino())).ok();
        id(a).is_some() && id(a) == id(b)
    }
    #[cfg(not(unix))]
    {
        let _ = (a, b); // their paths have been compared
        false
    }
}
