//! `weights.toml` -> entries, strictly: whatever is wrong is said with its line.

use crate::embedded;
use crate::hub::catalogue::{Catalogue, Entry, Kind, Match, PassDefaults, RunDefaults};
use crate::job::ranges;
use crate::platform::files;
use crate::sampling::guidance::ByLevel;
use crate::weights::config::{brief, check_width};
use anyhow::{Result, anyhow};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Bytes of a catalogue, at most.
const MOST_BYTES: u64 = 4 << 20;

/// Tables that hold entries of a kind; every other key is a model.
const KINDS: [(&str, Kind); 3] =
    [("text-encoder", Kind::TextEncoder), ("upscaler", Kind::Upscaler), ("tokenizer", Kind::Tokenizer)];

/// The longest name of an entry, and the longest of its texts: what is listed has to be read.
const LONGEST_NAME: usize = 100;
const LONGEST_TEXT: usize = 300;

/// What is wrong, and in which line.
#[derive(Debug)]
pub struct Wrong {
    line: usize,
    what: String,
}

/// Entries by name, each with the place of its table. Not a map of serde's, which would lose the places.
struct Group(Vec<(Spanned<String>, Entry)>);

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tables;
        impl<'de> Visitor<'de> for Tables {
            type Value = Group;
            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("tables, one a name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Group, A::Error> {
                let mut group = vec![];
                while let Some(name) = map.next_key()? {
                    group.push((name, map.next_value()?));
                }
                Ok(Group(group))
            }
        }
        deserializer.deserialize_map(Tables)
    }
}

/// The file as written.
struct File(Vec<(Spanned<String>, Entry)>);

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tables;
        impl<'de> Visitor<'de> for Tables {
            type Value = File;
            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a catalogue")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
                let mut all = vec![];
                while let Some(name) = map.next_key::<Spanned<String>>()? {
                    match KINDS.iter().find(|(group, _)| group == name.get_ref()) {
                        Some(&(_, kind)) => {
                            let group: Group = map.next_value()?;
                            all.extend(group.0.into_iter().map(|(name, entry)| (name, Entry { kind, ..entry })));
                        }
                        None => all.push((name, map.next_value()?)),
                    }
                }
                Ok(File(all))
            }
        }
        deserializer.deserialize_map(Tables)
    }
}

/// The entries of a TOML text, each checked by itself.
pub fn parse(text: &str) -> Result<Vec<Entry>, Wrong> {
    let at_line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let file: File = toml::from_str(text).map_err(|e| Wrong {
        line: e.span().map_or(1, |span| at_line(span.start)),
        what: e.message().lines().collect::<Vec<_>>().join(" "),
    })?;
    let place = |(name, entry): (Spanned<String>, Entry)| {
        let line = at_line(name.span().start);
        let entry = Entry { name: name.into_inner(), line, ..entry };
        match entry.check() {
            Ok(()) => Ok(entry),
            Err(what) => {
                let line = key_at(text, &entry, &what).map_or(line, &at_line);
                Err(Wrong { line, what: format!("`{}`: {what}", entry.name) })
            }
        }
    };
    file.0.into_iter().map(place).collect()
}

/// Where the key is that a complaint begins with, such as `` `run.width`: … ``.
fn key_at(text: &str, entry: &Entry, what: &str) -> Option<usize> {
    let key = what.strip_prefix('`')?.split('`').next()?;
    let group = KINDS.iter().find(|(_, kind)| *kind == entry.kind).map(|(group, _)| *group);
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut at = None;
    for part in group.into_iter().chain([entry.name.as_str()]).chain(key.split('.')) {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == part)?;
        at = Some(key.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    at
}

/// `own` laid over `built_in`, in the order of a list, with what entries say of each other checked.
pub fn merge(mut built_in: Vec<Entry>, own: Vec<Entry>) -> Result<Catalogue, Wrong> {
    built_in.retain(|entry| own.iter().all(|mine| mine.name != entry.name));
    let mut entries: Vec<Entry> =
        built_in.into_iter().chain(own.into_iter().map(|entry| Entry { own: true, ..entry })).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    // the built-in models first, then small before large; within a size by name, and so by version
    entries.sort_by_key(|e| match e.kind {
        Kind::Model => (0, u64::from(!e.embedded), e.matches.as_ref().and_then(|m| m.layers).unwrap_or(0) as u64),
        Kind::TextEncoder => (1, 0, u64::MAX - e.size().unwrap_or(0)),
        Kind::Upscaler => (2, 0, 0),
        Kind::Tokenizer => (3, 0, 0),
    });
    let catalogue = Catalogue { entries };
    for entry in &catalogue.entries {
        let check = || {
            catalogue.references(entry)?;
            catalogue.tells_apart(entry)
        };
        check().map_err(|what| Wrong { line: entry.line, what: format!("`{}`: {what}", entry.name) })?;
    }
    Ok(catalogue)
}

/// The built-in entries with those of a file laid over them; `None` when there is no such file.
pub fn with_own(path: &Path) -> Result<Option<Catalogue>> {
    let text = match files::read_small_text(path, MOST_BYTES) {
        Err(error) if files::is_missing(&error) => return Ok(None),
        text => text?,
    };
    let merged = parse(&text).and_then(|own| merge(crate::hub::catalogue::built_in().entries, own));
    merged.map(Some).map_err(|Wrong { line, what }| {
        anyhow!("`{}`, line {line}: {what}\n  fix: mend that entry, or remove it", path.display())
    })
}

impl Catalogue {
    fn references(&self, entry: &Entry) -> Result<(), String> {
        let parts = [
            ("text_encoder", &entry.text_encoder, Kind::TextEncoder),
            ("tokenizer", &entry.tokenizer, Kind::Tokenizer),
            ("upscaler", &entry.upscaler, Kind::Upscaler),
            ("variant_of", &entry.variant_of, Kind::TextEncoder),
        ];
        for (key, name, kind) in parts {
            let Some(name) = name else { continue };
            if !self.entries.iter().any(|e| e.name == *name && e.kind == kind) {
                let group = KINDS.iter().find(|(_, k)| *k == kind).map_or("", |(group, _)| group);
                return Err(format!("`{key}` names `{name}`, and there is no [{group}.{name}]"));
            }
        }
        if self.entries.iter().filter(|e| e.name == entry.name).count() > 1 {
            return Err("the name is taken twice".to_string());
        }
        Ok(())
    }

    /// The user's own entries that neither a header nor the length of the file can tell apart have to run alike. They come
    /// before the built-in ones, so one of each may differ.
    fn tells_apart(&self, entry: &Entry) -> Result<(), String> {
        let alike = |e: &&Entry| {
            let as_long = e.bytes.is_none() || entry.bytes.is_none() || e.bytes == entry.bytes;
            e.own && entry.own && e.matches.is_some() && e.matches == entry.matches && as_long
        };
        match self.entries.iter().filter(alike).find(|e| e.run != entry.run) {
            Some(other) => Err(format!(
                "its `match` is that of `{}` and its `run` is not: a file cannot tell the two apart",
                other.name
            )),
            None => Ok(()),
        }
    }
}

impl Entry {
    /// Checks what can be judged without other entries.
    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let part = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(plain);
        ensure(part(&self.name) && self.name == self.name.to_lowercase() && !self.name.starts_with('.'), || {
            "a name is made of a-z, 0-9 and `._-`".to_string()
        })?;
        ensure(!self.about.is_empty() && !self.licence.is_empty(), || "`about` or `licence` is empty".to_string())?;
        ensure(self.name.len() <= LONGEST_NAME, || format!("a name has at most {LONGEST_NAME} letters"))?;
        for (key, text) in [("about", &self.about), ("licence", &self.licence)] {
            ensure(!text.chars().any(char::is_control), || format!("`{key}` holds line breaks or control characters"))?;
            ensure(text.chars().count() <= LONGEST_TEXT, || format!("`{key}` has more than {LONGEST_TEXT} letters"))?;
        }
        ensure(!self.embedded || embedded::named(&self.name).is_some(), || {
            let names = embedded::MODELS.each_ref().map(|model| format!("`{}`", model.name)).join(" and ");
            format!("only {names} are in the program: `embedded` is no key for others")
        })?;
        match (self.embedded, &self.repo, &self.file) {
            (true, None, None) => {}
            (true, ..) => return Err("`embedded` cannot stand beside `repo` and `file`".to_string()),
            (false, Some(repo), Some(file)) => {
                let owned = repo.split('/').count() == 2 && repo.split('/').all(part);
                ensure(owned, || format!("`repo` is `{repo}`, not owner/name"))?;
                let inside = |s: &str| !s.is_empty() && s != "." && s != ".." && !s.contains(['\\', ':', '\0', '\n']);
                ensure(file.split('/').all(inside), || {
                    format!("`file` is `{file}`, not a path inside the repository")
                })?;
            }
            _ => return Err("`repo` and `file` are needed".to_string()),
        }
        if let Some(revision) = &self.revision {
            ensure(revision.split('/').all(part), || {
                format!("`revision` is `{revision}`, not a branch, a tag or a commit")
            })?;
        }
        ensure(self.bytes.is_none() || self.about_bytes.is_none(), || {
            "`bytes` and `about_bytes` say the same thing".to_string()
        })?;
        if let Some(hash) = &self.sha256 {
            ensure(crate::hub::catalogue::is_sha256(hash), || {
                format!("`sha256` is `{hash}`, not 64 digits of 0-9 and a-f")
            })?;
        }
        numbers("", &[("bytes", self.bytes.map(|n| n as f64)), ("about_bytes", self.about_bytes.map(|n| n as f64))])?;
        let of_models = self.matches.is_some()
            || self.run != RunDefaults::default()
            || self.family.is_some()
            || self.text_encoder.is_some()
            || self.upscaler.is_some();
        ensure(self.kind == Kind::Model || !of_models, || {
            "`match`, `run`, `family`, `text_encoder` and `upscaler` are keys of models".to_string()
        })?;
        ensure(self.kind == Kind::TextEncoder || self.variant_of.is_none(), || {
            "`variant_of` is a key of text encoders".to_string()
        })?;
        if let Some(m) = &self.matches {
            let sizes = m.vae.is_some() && m.layers.is_some() && m.heads.is_some() && m.head_dim.is_some();
            ensure(m.name.is_some() || sizes, || {
                "`match` needs `name`, or `vae`, `layers`, `heads` and `head_dim`".to_string()
            })?;
            m.check()?;
        }
        self.run.check()
    }
}

impl Match {
    fn check(&self) -> Result<(), String> {
        let Self { name: _, vae, layers, heads, head_dim, distilled: _ } = self;
        numbers("match", &[("layers", whole(layers)), ("heads", whole(heads)), ("head_dim", whole(head_dim))])?;
        if let (Some(heads), Some(head_dim)) = (heads, head_dim) {
            check_width(*heads, *head_dim)
                .map_err(|why| format!("`match.heads` is {heads} and `match.head_dim` {head_dim}: {why}"))?;
        }
        ensure(vae.as_deref().is_none_or(|vae| ["0.9.0", "0.9.1", "0.9.5"].contains(&vae)), || {
            let vae = brief(vae.as_deref().unwrap_or_default());
            format!("`match.vae` is `{vae}`, and has to be 0.9.0, 0.9.1 or 0.9.5")
        })
    }
}

impl RunDefaults {
    fn check(&self) -> Result<(), String> {
        // without `..`: a new number cannot be forgotten here
        let Self {
            width,
            height,
            frames,
            window,
            fps,
            steps,
            sigmas,
            guidance,
            guidance_rescale,
            stg,
            stg_blocks,
            guidance_timesteps,
            cfg_star: _,
            stochastic: _,
            tone_map,
            downscale,
            first,
            second,
            decode_timestep,
            decode_noise,
            negative: _,
            image_noise,
            image_crf,
            convention: _,
            recipe: _,
        } = self;
        let sizes = [("width", whole(width)), ("height", whole(height)), ("frames", whole(frames))];
        let counts = [("window", whole(window)), ("steps", whole(steps)), ("image_crf", image_crf.map(f64::from))];
        let reals = [("fps", *fps), ("tone_map", *tone_map), ("downscale", *downscale), ("image_noise", *image_noise)];
        let decoder = [("decode_timestep", *decode_timestep), ("decode_noise", *decode_noise)];
        numbers("run", &[&sizes[..], &counts, &reals, &decoder].concat())?;
        let guided = [("guidance", guidance), ("guidance_rescale", guidance_rescale), ("stg", stg)];
        lists("run", sigmas, guidance_timesteps, guided, stg_blocks)?;
        ensure(steps.is_none() || sigmas.is_none(), || "`run.steps` and `run.sigmas` say the same thing".to_string())?;
        for (name, pass) in [("first", first), ("second", second)] {
            if let Some(pass) = pass {
                pass.check(&format!("run.{name}"))?;
            }
        }
        Ok(())
    }
}

impl PassDefaults {
    fn check(&self, table: &str) -> Result<(), String> {
        let Self {
            steps,
            sigmas,
            skip_initial,
            skip_final,
            guidance,
            guidance_rescale,
            stg,
            stg_blocks,
            guidance_timesteps,
            cfg_star: _,
            tone_map,
        } = self;
        let skipped = [("skip_initial", whole(skip_initial)), ("skip_final", whole(skip_final))];
        numbers(table, &[&skipped[..], &[("steps", whole(steps)), ("tone_map", *tone_map)]].concat())?;
        let guided = [("guidance", guidance), ("guidance_rescale", guidance_rescale), ("stg", stg)];
        lists(table, sigmas, guidance_timesteps, guided, stg_blocks)?;
        ensure(steps.is_none() || sigmas.is_none(), || {
            format!("`{table}.steps` and `{table}.sigmas` say the same thing")
        })
    }
}

fn whole(number: &Option<usize>) -> Option<f64> {
    number.map(|n| n as f64)
}

/// A key as it is called in messages.
fn path(table: &str, key: &str) -> String {
    if table.is_empty() { format!("`{key}`") } else { format!("`{table}.{key}`") }
}

/// Holds single numbers of a table to their ranges.
fn numbers(table: &str, all: &[(&str, Option<f64>)]) -> Result<(), String> {
    for &(key, value) in all {
        let Some(value) = value else { continue };
        ranges::check(key, value).map_err(|e| format!("{} is {value}: {e}", path(table, key)))?;
    }
    Ok(())
}

/// Holds the lists of a table to their ranges, and levels to falling.
/// - `guided`: numbers, or lists by level.
fn lists(
    table: &str,
    sigmas: &Option<Vec<f64>>,
    levels: &Option<Vec<f64>>,
    guided: [(&str, &Option<ByLevel<f64>>); 3],
    blocks: &Option<ByLevel<Vec<usize>>>,
) -> Result<(), String> {
    let hold = |key: &str, values: &[f64]| {
        ranges::check_list(key, values.iter().copied()).map_err(|e| format!("{}: {e}", path(table, key)))
    };
    for (key, levels) in [("sigmas", sigmas), ("guidance_timesteps", levels)] {
        let Some(levels) = levels else { continue };
        hold(key, levels)?;
        ensure(levels.windows(2).all(|pair| pair[0] > pair[1]), || format!("{} have to fall", path(table, key)))?;
    }
    ensure(sigmas.as_ref().is_none_or(|all| all.last().is_some_and(|&least| least > 0.0)), || {
        format!("{} have to fall, from at most 1 to above 0", path(table, "sigmas"))
    })?;
    for (key, list) in guided {
        hold(key, list.as_ref().map_or(&[][..], |list| list.values()))?;
    }
    let of = |blocks: &Vec<usize>| blocks.iter().map(|&n| n as f64).collect::<Vec<_>>();
    let blocks = blocks.as_ref().map_or(&[][..], |list| list.values());
    blocks.iter().try_for_each(|blocks| hold("stg_blocks", &of(blocks)))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
