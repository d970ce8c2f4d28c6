//! The models reel knows by name: `weights.toml`, compiled in. Where a model's files are, how it is run by default, and
//! which entry a file given by path belongs to. Knows no network and no disk; the numbers and their sources are in the TOML.

use crate::guidance::ByLevel;
use anyhow::{Result, anyhow};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One model a user can name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    #[serde(skip)]
    pub name: String,
    pub about: String,
    /// The licence's name; `licence_file` holds its text, in `repo`.
    pub licence: String,
    pub licence_file: Option<String>,
    /// The model is in the binary: no `repo`, no `file`.
    #[serde(default)]
    pub embedded: bool,
    /// Hugging Face repository, `owner/name`.
    pub repo: Option<String>,
    /// Path inside `repo`.
    pub file: Option<String>,
    /// The exact length of the file, where known; else `about_bytes`.
    pub bytes: Option<u64>,
    pub about_bytes: Option<u64>,
    /// Lower-case hex.
    pub sha256: Option<String>,
    /// The name of the [`TextEncoder`] that the file lacks; see [`text_encoder`].
    pub text_encoder: Option<String>,
    /// The name of the latent upscaler that goes between its two passes.
    pub upscaler: Option<String>,
    #[serde(rename = "match")]
    pub matches: Option<Match>,
    #[serde(default)]
    pub run: RunDefaults,
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
    /// `text` or `condition`, for a model whose VAE does not tell.
    pub convention: Option<String>,
}

impl RunDefaults {
    /// Whether a run makes two passes, with an upscaler between them.
    pub fn in_two_passes(&self) -> bool {
        self.first.is_some() || self.second.is_some()
    }
}

/// What one of two passes takes in place of the run's own defaults; named like them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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

/// A text encoder that models share. It is pulled like a model but cannot be run as one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoder {
    #[serde(skip)]
    pub name: String,
    pub about: String,
    pub licence: String,
    pub repo: String,
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
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
}

/// A line of `models list`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: &'static str,
    /// `6.34 GB`, `about 28.6 GB` or `built in`.
    pub size: String,
    pub licence: &'static str,
    pub about: &'static str,
    pub embedded: bool,
}

/// The file as written. Every other key is a model.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "text-encoder")]
    text_encoders: BTreeMap<String, TextEncoder>,
    #[serde(flatten)]
    models: BTreeMap<String, Entry>,
}

struct Catalogue {
    models: Vec<Entry>,
    text_encoders: Vec<TextEncoder>,
}

// The text is compiled in, and the tests parse the same text: a catalogue that does not parse never leaves the house.
static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    parse(include_str!("../../weights.toml")).expect("weights.toml, compiled in and parsed by a test")
});

fn parse(text: &str) -> Result<Catalogue> {
    let file: File = toml::from_str(text)?;
    let mut models: Vec<Entry> = file.models.into_iter().map(|(name, entry)| Entry { name, ..entry }).collect();
    // The built-in model first, then small before large; within a size by name, and so by version.
    models.sort_by_key(|e| (!e.embedded, e.matches.as_ref().and_then(|m| m.layers)));
    let text_encoders = file.text_encoders.into_iter().map(|(name, encoder)| TextEncoder { name, ..encoder }).collect();
    Ok(Catalogue { models, text_encoders })
}

/// All models: the built-in one first, then small before large, older before newer.
pub fn entries() -> &'static [Entry] {
    &CATALOGUE.models
}

/// All text encoders that can be pulled.
pub fn text_encoders() -> &'static [TextEncoder] {
    &CATALOGUE.text_encoders
}

/// The text encoder of that name: what [`Entry::text_encoder`] points to.
pub fn text_encoder(name: &str) -> Option<&'static TextEncoder> {
    text_encoders().iter().find(|encoder| encoder.name == name)
}

/// The model of that name.
/// - Errors when there is none, with the nearest name and then all of them, nearest first.
pub fn find(name: &str) -> Result<&'static Entry> {
    if let Some(entry) = entries().iter().find(|entry| entry.name == name) {
        return Ok(entry);
    }
    // A part of a name (`0.9.8`, `ltx-2b-0.9.6`) is nearer than any slip of the finger.
    let part = |of: &str| name.len() > 2 && of.contains(&name.to_lowercase());
    let mut names: Vec<(bool, usize, &str)> =
        entries().iter().map(|entry| (!part(&entry.name), distance(name, &entry.name), &*entry.name)).collect();
    names.sort_by_key(|&(apart, far, _)| (apart, far)); // stable: equally far ones keep the catalogue's order
    let quoted: Vec<String> = names.iter().map(|(_, _, name)| format!("`{name}`")).collect();
    let guess = match names.first() {
        // Half the letters wrong is no slip any more.
        Some((apart, far, near)) if !apart || *far <= name.chars().count() / 2 => {
            format!("; did you mean `{near}`?")
        }
        _ => String::new(),
    };
    if text_encoder(name).is_some() {
        return Err(anyhow!(
            "`{name}` is a text encoder, not a model\n  fix: download it, and pass its file with --text-encoder beside --model"
        ));
    }
    Err(anyhow!(
        "unknown model `{name}`{guess}\n  models: {}\n  fix: name one of these, or give a path to a `.safetensors` file or a directory",
        quoted.join(", ")
    ))
}

/// The entry whose run defaults a file given by path takes.
///
/// A name in the header decides alone. Otherwise the VAE, the sizes and whether there are `allowed_inference_steps` must all
/// agree; of several entries that do the one is taken that is as long as the file, else the newest. The file's own list of
/// steps, where it has one, is the better default than the entry's `sigmas`.
pub fn matching(facts: &Facts) -> Option<&'static Entry> {
    let by_name = entries()
        .iter()
        .find(|entry| entry.matches.as_ref().is_some_and(|m| m.name.is_some() && m.name.as_deref() == facts.name));
    let alike = || entries().iter().rev().filter(|entry| entry.matches.as_ref().is_some_and(|m| m.shape_is(facts)));
    let as_long = || alike().find(|entry| facts.bytes.is_some() && entry.bytes == facts.bytes);
    by_name.or_else(as_long).or_else(|| alike().next())
}

/// Entries that the one found by [`matching`] cannot be told from, and that run otherwise.
pub fn doubles(entry: &Entry, facts: &Facts) -> Vec<&'static Entry> {
    let sure =
        entry.matches.as_ref().is_none_or(|m| m.name.is_some()) || facts.bytes.is_some() && entry.bytes == facts.bytes;
    let others = entries().iter().filter(|other| other.matches == entry.matches && other.run != entry.run);
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

/// The lines of `models list`: the models, then the text encoders.
pub fn rows() -> Vec<Row> {
    let models = entries().iter().map(|e| Row {
        name: &e.name,
        size: match (e.embedded, e.bytes, e.about_bytes) {
            (true, ..) => "built in".into(),
            (_, Some(bytes), _) => human(bytes),
            (_, _, Some(bytes)) => format!("about {}", human(bytes)),
            _ => "unknown".into(),
        },
        licence: &e.licence,
        about: &e.about,
        embedded: e.embedded,
    });
    let encoders = text_encoders().iter().map(|e| Row {
        name: &e.name,
        size: human(e.bytes),
        licence: &e.licence,
        about: &e.about,
        embedded: false,
    });
    models.chain(encoders).collect()
}

/// Bytes in decimal units with three digits, as download pages show them: `6.34 GB`.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let decimals = match value {
                _ if unit == "B" => 0,
                v if v < 9.995 => 2,
                v if v < 99.95 => 1,
                _ => 0,
            };
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
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
mod tests {
    use super::*;
    use crate::passes;
    use crate::request::Request;

    const STEPS: [f64; 8] = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219];

    fn facts(vae: &str, big: bool, distilled: bool) -> Facts<'_> {
        let (layers, head_dim) = if big { (48, 128) } else { (28, 64) };
        Facts { name: None, vae, layers, heads: 32, head_dim, allowed_steps: distilled.then_some(&STEPS), bytes: None }
    }

    fn name(facts: &Facts) -> Option<&'static str> {
        matching(facts).map(|entry| &*entry.name)
    }

    #[test]
    fn parses_in_order() {
        let names: Vec<&str> = entries().iter().map(|entry| &*entry.name).collect();
        assert_eq!(
            names,
            [
                "tiny",
                "ltx-2b-0.9.0",
                "ltx-2b-0.9.1",
                "ltx-2b-0.9.5",
                "ltx-2b-0.9.6-dev",
                "ltx-2b-0.9.6-distilled",
                "ltx-2b-0.9.8-distilled",
                "ltx-13b-0.9.7-dev",
                "ltx-13b-0.9.7-distilled",
                "ltx-13b-0.9.8-dev",
                "ltx-13b-0.9.8-distilled",
            ]
        );
    }

    #[test]
    fn unknown_and_doubled_keys_do_not_parse() {
        let good = "[text-encoder]\n[x]\nabout = 'a'\nlicence = 'l'\n";
        assert!(parse(good).is_ok());
        assert!(parse(&format!("{good}colour = 'red'\n")).is_err());
        assert!(parse(&format!("{good}[x.run]\nguidence = 3\n")).is_err());
        assert!(parse(&format!("{good}[x.match]\nvea = '0.9.0'\n")).is_err());
        assert!(parse(&format!("{good}{good}")).is_err());
    }

    #[test]
    fn every_entry_is_complete() {
        for e in entries() {
            assert_eq!(e.name, e.name.to_lowercase());
            assert!(!e.licence.is_empty() && !e.about.is_empty() && e.about.len() <= 70, "{}", e.name);
            assert_eq!(e.embedded, e.repo.is_none(), "{}", e.name);
            assert_eq!(e.embedded, e.file.is_none(), "{}", e.name);
            assert!(e.embedded || e.bytes.is_some() != e.about_bytes.is_some(), "{}", e.name);
            assert!(e.embedded || e.licence_file.is_some(), "{}", e.name);
            assert!(e.matches.is_some(), "{}", e.name);
            if let Some(encoder) = &e.text_encoder {
                assert!(text_encoder(encoder).is_some(), "{}", e.name);
            }
        }
        let hashes =
            entries().iter().filter_map(|e| e.sha256.as_deref()).chain(text_encoders().iter().map(|e| &*e.sha256));
        for hash in hashes {
            assert!(
                hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                "{hash}"
            );
        }
        assert_eq!(entries().iter().filter(|e| e.embedded).count(), 1);
        assert!(text_encoders().iter().all(|t| entries().iter().all(|e| e.name != t.name)));
    }

    #[test]
    fn run_defaults_are_legal() {
        for Entry { name, run, matches, upscaler, .. } in entries() {
            let matches = matches.as_ref().unwrap();
            let (w, h, f) = (run.width.unwrap(), run.height.unwrap(), run.frames.unwrap());
            assert!(w % 32 == 0 && h % 32 == 0 && f % 8 == 1 && run.fps.unwrap() > 0.0, "{name}");
            assert!(run.steps.is_some() != run.sigmas.is_some(), "{name}");
            if let Some(sigmas) = &run.sigmas {
                assert!(
                    sigmas[0] <= 1.0 && sigmas.windows(2).all(|w| w[0] > w[1]) && sigmas[sigmas.len() - 1] > 0.0,
                    "{name}"
                );
            }
            assert!(run.guidance.as_ref().unwrap().values().iter().all(|&scale| scale >= 1.0), "{name}");
            for two in [false, true] {
                let passes = passes::decide(&Request::default(), run, None, two).unwrap();
                assert!(passes.iter().all(|pass| pass.check(matches.layers.unwrap_or(usize::MAX)).is_ok()), "{name}");
            }
            assert_eq!(run.in_two_passes(), upscaler.is_some() && run.downscale.is_some(), "{name}");
            assert!(run.convention.as_deref().is_none_or(|c| c == "text" || c == "condition"), "{name}");
        }
    }

    #[test]
    fn entries_that_look_alike_run_alike() {
        for a in entries() {
            for b in entries().iter().filter(|b| b.matches == a.matches) {
                let told_apart = a.bytes.is_some() && b.bytes.is_some() && a.bytes != b.bytes;
                assert!(a.run == b.run || told_apart, "{} and {}", a.name, b.name);
            }
        }
    }

    #[test]
    fn a_header_finds_its_family() {
        assert_eq!(name(&facts("0.9.0", false, false)), Some("ltx-2b-0.9.0"));
        assert_eq!(name(&facts("0.9.1", false, false)), Some("ltx-2b-0.9.1"));
        assert_eq!(name(&facts("0.9.5", false, false)), Some("ltx-2b-0.9.6-dev"));
        assert_eq!(name(&facts("0.9.5", false, true)), Some("ltx-2b-0.9.8-distilled"));
        assert_eq!(name(&facts("0.9.5", true, false)), Some("ltx-13b-0.9.8-dev"));
        assert_eq!(name(&facts("0.9.5", true, true)), Some("ltx-13b-0.9.8-distilled"));
        // No such model: another VAE, other sizes.
        assert_eq!(name(&facts("0.9.1", true, false)), None);
        assert_eq!(name(&facts("", false, false)), None);
        assert_eq!(name(&Facts { layers: 27, ..facts("0.9.5", false, false) }), None);
        assert_eq!(name(&Facts { heads: 31, ..facts("0.9.5", false, false) }), None);
        assert_eq!(name(&Facts { head_dim: 65, ..facts("0.9.5", false, false) }), None);
        // An empty list of steps says nothing; an unknown name neither.
        assert_eq!(name(&Facts { allowed_steps: Some(&[]), ..facts("0.9.5", false, true) }), Some("ltx-2b-0.9.6-dev"));
        assert_eq!(name(&Facts { name: Some("mine"), ..facts("0.9.0", false, false) }), Some("ltx-2b-0.9.0"));
    }

    #[test]
    fn tiny_is_known_by_its_name_alone() {
        let own = Facts { name: Some("tiny"), layers: 8, heads: 4, head_dim: 48, ..facts("0.9.5", false, false) };
        let tiny = own;
        assert_eq!(name(&tiny), Some("tiny"));
        assert_eq!(name(&Facts { name: None, ..tiny }), None);
        assert_eq!(name(&Facts { name: Some("tiny"), ..facts("0.9.5", true, false) }), Some("tiny"));
    }

    #[test]
    fn every_entry_matches_an_equal_run() {
        for e in entries() {
            let m = e.matches.as_ref().unwrap();
            let facts = Facts {
                name: m.name.as_deref(),
                vae: m.vae.as_deref().unwrap_or(""),
                layers: m.layers.unwrap_or(0),
                heads: m.heads.unwrap_or(0),
                head_dim: m.head_dim.unwrap_or(0),
                allowed_steps: m.distilled.then_some(&STEPS),
                bytes: e.bytes,
            };
            assert_eq!(matching(&facts).map(|found| &found.run), Some(&e.run), "{}", e.name);
            let (same, found) = (Facts { bytes: None, ..facts }, matching(&facts).unwrap());
            let run_alike = entries().iter().all(|other| other.matches != e.matches || other.run == e.run);
            assert!(doubles(found, &facts).is_empty() && doubles(e, &same).is_empty() == run_alike, "{}", e.name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_choices() {
        assert_eq!(find("tiny").unwrap().name, "tiny");
        let error = find("ltx-2b-0.9.6-distiled").unwrap_err().to_string();
        assert!(
            error.starts_with("unknown model `ltx-2b-0.9.6-distiled`; did you mean `ltx-2b-0.9.6-distilled`?"),
            "{error}"
        );
        assert!(error.contains("models: `ltx-2b-0.9.6-distilled`, `ltx-2b-0.9.8-distilled`"), "{error}");
        assert!(entries().iter().all(|e| error.contains(&format!("`{}`", e.name))), "{error}");
        assert!(error.contains("path"), "{error}");
        assert!(find("TINY").unwrap_err().to_string().contains("did you mean `tiny`?"));
        for nonsense in ["", "x", "stable-diffusion-xl"] {
            let error = find(nonsense).unwrap_err().to_string();
            assert!(!error.contains("did you mean"), "{error}");
        }
        assert!(find("t5-xxl-fp16").unwrap_err().to_string().contains("--text-encoder"));
    }

    #[test]
    fn rows_say_size_and_licence() {
        let rows = rows();
        assert_eq!(rows.len(), entries().len() + text_encoders().len());
        assert_eq!(
            (rows[0].name, &*rows[0].size, rows[0].licence, rows[0].embedded),
            ("tiny", "built in", "Apache-2.0", true)
        );
        assert_eq!(rows.iter().find(|row| row.name == "ltx-2b-0.9.5").unwrap().size, "6.34 GB");
        assert_eq!(rows.iter().find(|row| row.name == "ltx-13b-0.9.7-distilled").unwrap().size, "about 28.6 GB");
        assert!(rows.iter().all(|row| row.embedded == (row.name == "tiny")));
    }

    #[test]
    fn sizes_read_well() {
        let said = [0, 999, 1000, 999_499, 999_500, 9_995_000, 28_579_183_340, 2_000_000_000_000].map(human);
        assert_eq!(said, ["0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "10.0 MB", "28.6 GB", "2.00 TB"]);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("Tiny", "tiny"), 0);
    }
}
