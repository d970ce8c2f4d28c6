//! `weights.toml` -> entries, strictly: whatever is wrong is said with its line.

use super::{Catalogue, Entry, Kind, PassDefaults, RunDefaults};
use crate::guidance::ByLevel;
use crate::platform::files;
use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::path::Path;
use toml::Spanned;

/// Bytes of a catalogue, at most.
const MOST_BYTES: u64 = 4 << 20;

/// Tables that hold entries of a kind; every other key is a model.
const KINDS: [(&str, Kind); 3] =
    [("text-encoder", Kind::TextEncoder), ("upscaler", Kind::Upscaler), ("tokenizer", Kind::Tokenizer)];

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
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let file: File = toml::from_str(text).map_err(|e| Wrong {
        line: e.span().map_or(1, |span| line(span.start)),
        what: e.message().lines().collect::<Vec<_>>().join(" "),
    })?;
    let place = |(name, entry): (Spanned<String>, Entry)| {
        let line = line(name.span().start);
        let entry = Entry { name: name.into_inner(), line, ..entry };
        match entry.check() {
            Ok(()) => Ok(entry),
            Err(what) => Err(Wrong { line, what: format!("`{}`: {what}", entry.name) }),
        }
    };
    file.0.into_iter().map(place).collect()
}

/// `own` laid over `built_in`, in the order of a list, with what entries say of each other checked.
pub fn merge(mut built_in: Vec<Entry>, own: Vec<Entry>) -> Result<Catalogue, Wrong> {
    built_in.retain(|entry| own.iter().all(|mine| mine.name != entry.name));
    let mut entries: Vec<Entry> =
        built_in.into_iter().chain(own.into_iter().map(|entry| Entry { own: true, ..entry })).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    // the built-in model first, then small before large; within a size by name, and so by version
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
    let merged = parse(&text).and_then(|own| merge(super::built_in().entries, own));
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
        ensure(!self.embedded || self.name == crate::embedded::NAME, || {
            format!("only `{}` is in the program: `embedded` is no key for others", crate::embedded::NAME)
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
            ensure(super::is_sha256(hash), || format!("`sha256` is `{hash}`, not 64 digits of 0-9 and a-f"))?;
        }
        let of_models = self.matches.is_some()
            || self.run != RunDefaults::default()
            || self.text_encoder.is_some()
            || self.upscaler.is_some();
        ensure(self.kind == Kind::Model || !of_models, || {
            "`match`, `run`, `text_encoder` and `upscaler` are keys of models".to_string()
        })?;
        ensure(self.kind == Kind::TextEncoder || self.variant_of.is_none(), || {
            "`variant_of` is a key of text encoders".to_string()
        })?;
        if let Some(m) = &self.matches {
            let sizes = m.vae.is_some() && m.layers.is_some() && m.heads.is_some() && m.head_dim.is_some();
            ensure(m.name.is_some() || sizes, || {
                "`match` needs `name`, or `vae`, `layers`, `heads` and `head_dim`".to_string()
            })?;
            let vae = m.vae.as_deref().is_none_or(|vae| ["0.9.0", "0.9.1", "0.9.5"].contains(&vae));
            ensure(vae, || "`match.vae` is 0.9.0, 0.9.1 or 0.9.5".to_string())?;
        }
        self.run.check()
    }
}

impl RunDefaults {
    fn check(&self) -> Result<(), String> {
        let counts = [
            ("width", self.width),
            ("height", self.height),
            ("frames", self.frames),
            ("window", self.window),
            ("steps", self.steps),
        ];
        for (key, count) in counts {
            ensure(count != Some(0), || format!("`run.{key}` is 0"))?;
        }
        ensure(self.fps.is_none_or(|fps| fps.is_finite() && fps > 0.0), || "`run.fps` is not above 0".to_string())?;
        check_lists("run", self.guidance_timesteps.as_deref(), &self.guidance, &self.guidance_rescale, &self.stg)?;
        ensure(self.downscale.is_none_or(|x| x > 0.0 && x <= 1.0), || {
            "`run.downscale` is not above 0, to 1".to_string()
        })?;
        let shares = [
            ("tone_map", self.tone_map),
            ("decode_timestep", self.decode_timestep),
            ("decode_noise", self.decode_noise),
            ("image_noise", self.image_noise),
        ];
        for (key, share) in shares {
            ensure(share.is_none_or(|x| (0.0..=1.0).contains(&x)), || format!("`run.{key}` is not 0 to 1"))?;
        }
        ensure(self.steps.is_none() || self.sigmas.is_none(), || {
            "`run.steps` and `run.sigmas` say the same thing".to_string()
        })?;
        check_sigmas("run", self.sigmas.as_deref())?;
        for (name, pass) in [("first", &self.first), ("second", &self.second)] {
            if let Some(pass) = pass {
                pass.check(&format!("run.{name}"))?;
            }
        }
        Ok(())
    }
}

impl PassDefaults {
    fn check(&self, table: &str) -> Result<(), String> {
        ensure(self.steps != Some(0), || format!("`{table}.steps` is 0"))?;
        ensure(self.steps.is_none() || self.sigmas.is_none(), || {
            format!("`{table}.steps` and `{table}.sigmas` say the same thing")
        })?;
        check_sigmas(table, self.sigmas.as_deref())?;
        check_lists(table, self.guidance_timesteps.as_deref(), &self.guidance, &self.guidance_rescale, &self.stg)?;
        ensure(self.tone_map.is_none_or(|x| (0.0..=1.0).contains(&x)), || format!("`{table}.tone_map` is not 0 to 1"))
    }
}

fn check_sigmas(table: &str, sigmas: Option<&[f64]>) -> Result<(), String> {
    let Some(sigmas) = sigmas else { return Ok(()) };
    let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
    let inside = sigmas.iter().all(|s| *s > 0.0 && *s <= 1.0);
    ensure(!sigmas.is_empty() && falling && inside, || {
        format!("`{table}.sigmas` have to fall, from at most 1 to above 0")
    })
}

/// Numbers, or lists by level.
fn check_lists(
    table: &str,
    levels: Option<&[f64]>,
    guidance: &Option<ByLevel<f64>>,
    rescale: &Option<ByLevel<f64>>,
    stg: &Option<ByLevel<f64>>,
) -> Result<(), String> {
    let inside = |list: &Option<ByLevel<f64>>, most: f64| {
        list.iter().flat_map(|list| list.values()).all(|x| (0.0..=most).contains(x))
    };
    ensure(inside(guidance, f64::MAX), || format!("`{table}.guidance` is below 0"))?;
    ensure(inside(stg, f64::MAX), || format!("`{table}.stg` is below 0"))?;
    ensure(inside(rescale, 1.0), || format!("`{table}.guidance_rescale` is not 0 to 1"))?;
    ensure(levels.is_none_or(|levels| levels.windows(2).all(|pair| pair[0] > pair[1])), || {
        format!("`{table}.guidance_timesteps` have to fall")
    })
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
