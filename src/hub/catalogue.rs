//! The files reel knows by name: `weights.toml`, compiled in, and the user's own. Where they are, how a model is run by default,
//! and which entry a file given by path belongs to. The numbers and their sources are in the TOML; `read` takes it apart.

mod read;

use crate::embedded::{self, World};
use crate::job::convention::Convention;
use crate::job::recipe::Recipe;
use crate::platform::progress::human_bytes;
use crate::sampling::guidance::ByLevel;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::OnceLock;

/// What an entry is a file of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Model,
    /// Shared by models; `--text-encoder` takes its name.
    TextEncoder,
    /// Enlarges latents between two passes.
    Upscaler,
    Tokenizer,
}

/// One file that can be named: a model, or a part that models share.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    #[serde(skip)]
    pub name: String,
    #[serde(skip)]
    pub kind: Kind,
    /// Of the user's own `weights.toml`.
    #[serde(skip)]
    pub own: bool,
    /// Where its table begins in the TOML.
    #[serde(skip)]
    pub line: usize,
    pub about: String,
    /// The licence's name; `licence_file` holds its text, in `repo`.
    pub licence: String,
    pub licence_file: Option<String>,
    /// The family that a model is of; absent: the first one that reel ran.
    pub family: Option<String>,
    /// The model is in the binary: no `repo`, no `file`.
    #[serde(default)]
    pub embedded: bool,
    /// Hugging Face repository, `owner/name`.
    pub repo: Option<String>,
    /// Branch, tag or commit in `repo`; absent: `main`.
    pub revision: Option<String>,
    /// Path inside `repo`.
    pub file: Option<String>,
    /// The exact length of the file, where known; else `about_bytes`.
    pub bytes: Option<u64>,
    pub about_bytes: Option<u64>,
    /// Lower-case hex.
    pub sha256: Option<String>,
    /// Names of the entries that the file lacks and its run takes.
    pub text_encoder: Option<String>,
    pub tokenizer: Option<String>,
    pub upscaler: Option<String>,
    /// Of a text encoder: the one that it stands in for, in another type.
    pub variant_of: Option<String>,
    #[serde(rename = "match")]
    pub matches: Option<Match>,
    #[serde(default)]
    pub run: RunDefaults,
}

/// Where a file is on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote<'a> {
    pub repo: &'a str,
    pub revision: &'a str,
    pub file: &'a str,
}

impl Entry {
    /// Where its file is; `None` for a model in the binary.
    pub fn remote(&self) -> Option<Remote<'_>> {
        let revision = self.revision.as_deref().unwrap_or("main");
        Some(Remote { repo: self.repo.as_deref()?, revision, file: self.file.as_deref()? })
    }

    /// What a model of a small world was trained on; `None` where it is the world.
    pub fn world(&self) -> Option<&'static World> {
        embedded::named(&self.name).filter(|_| self.embedded).map(|model| &*model.world)
    }

    /// The version in its name, such as `0.9.8`, is also in what a file is `called`.
    fn version_is_in(&self, called: &str) -> bool {
        let is_version = |part: &&str| part.contains('.') && part.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let digit = |text: Option<char>| text.is_some_and(|c| c.is_ascii_digit());
        self.name.split('-').find(is_version).is_some_and(|version| {
            called.match_indices(version).any(|(at, _)| {
                let (before, after) = (&called[..at], &called[at + version.len()..]);
                !digit(before.chars().next_back()) && !digit(after.chars().next())
            })
        })
    }

    /// What of several names that hold what was asked for goes first: of models the distilled ones, which are by far the quickest,
    /// small before large, newer before older.
    /// - `at`: its place in the catalogue.
    fn age(&self, at: usize) -> (bool, usize, std::cmp::Reverse<usize>) {
        let known = self.matches.as_ref();
        let at = if self.kind == Kind::Model { at } else { usize::MAX };
        (!known.is_some_and(|m| m.distilled), known.and_then(|m| m.layers).unwrap_or(0), std::cmp::Reverse(at))
    }

    /// Bytes of its file, as far as the catalogue knows.
    pub fn size(&self) -> Option<u64> {
        self.bytes.or(self.about_bytes)
    }

    /// `6.34 GB`, `about 9.53 GB`, `built in` or `size unknown`.
    pub fn size_text(&self) -> String {
        match (self.embedded, self.bytes, self.about_bytes) {
            (true, ..) => "built in".into(),
            (_, Some(bytes), _) => human_bytes(bytes),
            (_, _, Some(bytes)) => format!("about {}", human_bytes(bytes)),
            _ => "size unknown".into(),
        }
    }
}

/// What a file's header must show to take an entry's defaults: either the name it carries, or all the rest.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    pub name: Option<String>,
    /// VAE generation: `0.9.0`, `0.9.1` or `0.9.5`.
    pub vae: Option<String>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub head_dim: Option<usize>,
    /// The header lists `allowed_inference_steps`.
    #[serde(default)]
    pub distilled: bool,
}

/// What a run takes where the user says nothing; named like the flags of `generate`. Absent: the convention's default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunDefaults {
    /// Pixels.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub frames: Option<usize>,
    /// Frames that the model makes well at once.
    pub window: Option<usize>,
    pub fps: Option<f64>,
    pub steps: Option<usize>,
    /// Descending, in (0, 1], without the closing 0. Never beside `steps`.
    pub sigmas: Option<Vec<f64>>,
    /// A number, or a list by `guidance_timesteps`; the next four likewise.
    pub guidance: Option<ByLevel<f64>>,
    pub guidance_rescale: Option<ByLevel<f64>>,
    pub stg: Option<ByLevel<f64>>,
    pub stg_blocks: Option<ByLevel<Vec<usize>>>,
    /// Falling; a list's value holds from its level down to the next.
    pub guidance_timesteps: Option<Vec<f64>>,
    pub cfg_star: Option<bool>,
    pub stochastic: Option<bool>,
    /// Compression of the latents' tones before they are decoded, 0 to 1.
    pub tone_map: Option<f64>,
    /// Of the first of two passes: its sides, of the whole.
    pub downscale: Option<f64>,
    /// What the first and the second of two passes do differently. A model that has them is run in two passes.
    pub first: Option<PassDefaults>,
    pub second: Option<PassDefaults>,
    pub decode_timestep: Option<f64>,
    pub decode_noise: Option<f64>,
    pub negative: Option<String>,
    pub image_noise: Option<f64>,
    pub image_crf: Option<u32>,
    /// For a model whose VAE does not tell.
    pub convention: Option<Convention>,
    /// Whose way it is run; absent: diffusers'.
    pub recipe: Option<Recipe>,
}

impl RunDefaults {
    /// Whether a run makes two passes, with an upscaler between them.
    pub fn in_two_passes(&self) -> bool {
        self.first.is_some() || self.second.is_some()
    }
}

/// What one of two passes takes in place of the run's own defaults; named like them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PassDefaults {
    pub steps: Option<usize>,
    pub sigmas: Option<Vec<f64>>,
    /// Of `steps`: how many are left out at the start and at the end.
    pub skip_initial: Option<usize>,
    pub skip_final: Option<usize>,
    pub guidance: Option<ByLevel<f64>>,
    pub guidance_rescale: Option<ByLevel<f64>>,
    pub stg: Option<ByLevel<f64>>,
    pub stg_blocks: Option<ByLevel<Vec<usize>>>,
    pub guidance_timesteps: Option<Vec<f64>>,
    pub cfg_star: Option<bool>,
    pub tone_map: Option<f64>,
}

/// What a checkpoint's header shows.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The model's name, where the header carries one.
    pub name: Option<&'a str>,
    /// VAE generation: `0.9.0`, `0.9.1` or `0.9.5`.
    pub vae: &'a str,
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// `allowed_inference_steps`; an empty list counts as none.
    pub allowed_steps: Option<&'a [f64]>,
    /// Length of the file, where it is one.
    pub bytes: Option<u64>,
    /// What the file or the directory is called.
    pub called: Option<&'a str>,
}

struct Catalogue {
    /// In the order of a list: models, the built-in ones first, then small before large, older before newer; then their parts.
    entries: Vec<Entry>,
}

static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();

// The text is compiled in, and the tests parse the same text: a catalogue that does not parse never leaves the house.
fn built_in() -> Catalogue {
    let entries =
        read::parse(include_str!("../../weights.toml")).expect("weights.toml, compiled in and parsed by a test");
    read::merge(entries, vec![]).expect("weights.toml, checked by a test")
}

/// Adds the user's own entries; one of a known name replaces that one whole. Without this call the built-in ones stand alone.
/// - Errors name file and line. A file that is not there is none.
pub fn add_own(path: &Path) -> Result<()> {
    if let Some(merged) = read::with_own(path)? {
        // a program reads its catalogue once
        let _ = CATALOGUE.set(merged);
    }
    Ok(())
}

/// Every entry: the models, the built-in ones first, then small before large, older before newer; then the parts they share.
pub fn entries() -> &'static [Entry] {
    &CATALOGUE.get_or_init(built_in).entries
}

/// All models, in that order.
pub fn models() -> impl DoubleEndedIterator<Item = &'static Entry> + Clone {
    entries().iter().filter(|entry| entry.kind == Kind::Model)
}

/// The entry of that name, of whatever kind.
pub fn named(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.name == name)
}

/// The text encoders that do for `entry`'s: the one it names first, then that one's variants, large before small.
pub fn text_encoders(entry: &Entry) -> Vec<&'static Entry> {
    let Some(first) = entry.text_encoder.as_deref().and_then(named) else { return vec![] };
    let mut variants: Vec<&Entry> =
        entries().iter().filter(|e| e.variant_of.as_deref() == Some(first.name.as_str())).collect();
    variants.sort_by_key(|e| std::cmp::Reverse(e.size()));
    variants.insert(0, first);
    variants
}

/// The model of that name.
/// - Errors when there is none, with the nearest name and then all of them, nearest first.
pub fn find(name: &str) -> Result<&'static Entry> {
    match named(name) {
        Some(entry) if entry.kind == Kind::Model => Ok(entry),
        Some(entry) => {
            let (what, flag) = match entry.kind {
                Kind::TextEncoder => ("a text encoder", "pass it with --text-encoder"),
                Kind::Upscaler => ("an upscaler", "models whose run takes it find it by themselves; name one of those"),
                _ => ("a tokenizer", "pass its file with --tokenizer"),
            };
            Err(anyhow!("`{name}` is {what}, not a model\n  fix: {flag}"))
        }
        None => Err(repository(name, |entry| match entry.kind {
            Kind::TextEncoder => format!("--text-encoder {}", entry.name),
            _ => format!("--model {}", entry.name),
        })
        .unwrap_or_else(|| unknown(name, "model", models()))),
    }
}

/// The entry of that name, of whatever kind.
/// - Errors as [`find`].
pub fn find_any(name: &str) -> Result<&'static Entry> {
    let by_repository = || repository(name, |entry| format!("`reel models pull {}`", entry.name));
    named(name).ok_or_else(|| by_repository().unwrap_or_else(|| unknown(name, "name", entries().iter())))
}

/// The entries whose files are in a repository of the hub, `owner/name` or its address; those go first that [`find`] would offer.
pub fn of_repository(name: &str) -> Vec<&'static Entry> {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let name = ["huggingface.co/", "hf.co/"].iter().find_map(|hub| name.strip_prefix(hub)).unwrap_or(name);
    let name = name.split('/').take(2).collect::<Vec<_>>().join("/");
    let is_in = |entry: &Entry| entry.repo.as_ref().is_some_and(|repo| repo.eq_ignore_ascii_case(&name));
    let mut found: Vec<(usize, &Entry)> = entries().iter().enumerate().filter(|(_, entry)| is_in(entry)).collect();
    found.sort_by_key(|(at, entry)| (entry.kind != Kind::Model, entry.age(*at)));
    found.into_iter().map(|(_, entry)| entry).collect()
}

/// What is to be said of a repository's name where one of the catalogue is wanted; `None` where no entry comes from it.
/// - `say`: how an entry is asked for.
fn repository(name: &str, say: impl Fn(&Entry) -> String) -> Option<anyhow::Error> {
    let found = of_repository(name);
    let (first, rest) = found.split_first()?;
    let others: Vec<String> = rest.iter().map(|entry| format!("`{}`", entry.name)).collect();
    let others = if others.is_empty() { String::new() } else { format!("; also there: {}", others.join(", ")) };
    Some(anyhow!(
        "`{name}` is a repository on the hub, and names are those of `reel models list`\n  fix: {}{others}",
        say(first)
    ))
}

/// How near a name is to what was asked for, nearest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Near {
    /// It is what was asked for, but for large and small letters.
    Same,
    /// It holds what was asked for.
    Part((bool, usize, std::cmp::Reverse<usize>)),
    /// So many letters are other ones.
    Slip(usize),
}

fn unknown(name: &str, what: &str, among: impl Iterator<Item = &'static Entry>) -> anyhow::Error {
    // A part of a name (`0.9.8`, `ltx-2b`) is nearer than any slip of the finger.
    let part = |of: &str| name.len() > 2 && of.contains(&name.to_lowercase());
    let mut names: Vec<(Near, &str)> = among
        .enumerate()
        .map(|(at, entry)| match part(&entry.name) {
            _ if entry.name.eq_ignore_ascii_case(name) => (Near::Same, &*entry.name),
            true => (Near::Part(entry.age(at)), &*entry.name),
            false => (Near::Slip(distance(name, &entry.name)), &*entry.name),
        })
        .collect();
    names.sort_by_key(|(near, _)| *near); // stable: equally far ones keep the catalogue's order
    let quoted: Vec<String> = names.iter().map(|(_, name)| format!("`{name}`")).collect();
    let guess = match names.first() {
        // Half the letters wrong is no slip any more.
        Some((Near::Slip(far), _)) if *far > name.chars().count() / 2 => String::new(),
        Some((_, near)) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    let fix = match what {
        "model" => "name one of these, or give a path to a `.safetensors` file or a directory",
        _ => "name one of these; `reel models list` shows what they are",
    };
    anyhow!("unknown {what} `{name}`{guess}\n  {what}s: {}\n  fix: {fix}", quoted.join(", "))
}

/// The entry whose run defaults a file given by path takes.
///
/// A name in the header decides alone. Otherwise the VAE, the sizes and whether there are `allowed_inference_steps` must all
/// agree; the user's own come first. Of several that do the one is taken that is as long as the file, else the one whose version
/// the file's name says, else the newest. The file's own list of steps, where it has one, is the better default than the entry's `sigmas`.
pub fn matching(facts: &Facts) -> Option<&'static Entry> {
    let named = |m: &Match| m.name.is_some() && m.name.as_deref() == facts.name;
    let by_name = |own: bool| models().find(|e| e.own == own && e.matches.as_ref().is_some_and(named));
    let alike = |own: bool| {
        models().rev().filter(move |e| e.own == own && e.matches.as_ref().is_some_and(|m| m.shape_is(facts)))
    };
    let best = |own: bool| {
        let as_long = alike(own).find(|entry| facts.bytes.is_some() && entry.bytes == facts.bytes);
        let so_called = || alike(own).find(|entry| facts.called.is_some_and(|called| entry.version_is_in(called)));
        as_long.or_else(so_called).or_else(|| alike(own).next())
    };
    by_name(true).or_else(|| by_name(false)).or_else(|| best(true)).or_else(|| best(false))
}

/// Entries that the one found by [`matching`] cannot be told from, and that run otherwise.
pub fn doubles(entry: &Entry, facts: &Facts) -> Vec<&'static Entry> {
    let sure = entry.matches.as_ref().is_none_or(|m| m.name.is_some())
        || facts.bytes.is_some() && entry.bytes == facts.bytes
        || facts.called.is_some_and(|called| entry.version_is_in(called));
    let others = models().filter(|e| e.own == entry.own && e.matches == entry.matches && e.run != entry.run);
    others.filter(|_| !sure).collect()
}

impl Match {
    fn shape_is(&self, facts: &Facts) -> bool {
        self.name.is_none()
            && self.vae.as_deref() == Some(facts.vae)
            && self.layers == Some(facts.layers)
            && self.heads == Some(facts.heads)
            && self.head_dim == Some(facts.head_dim)
            && self.distilled == facts.allowed_steps.is_some_and(|steps| !steps.is_empty())
    }
}

/// 64 digits of lower-case hex.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// How far apart two names are: letters to insert, drop or change, case aside (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
