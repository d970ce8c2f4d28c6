//! `reel models info NAME`: prints everything known about a catalogue entry.

use super::list::memory_of;
use super::text::labelled;
use super::{kind, named, named_state, open};
use crate::cli::{columns, print, print_data};
use crate::hub::catalogue::{self, Entry, Kind};
use crate::hub::store::{State, Store, size_of};
use crate::pipeline::entries::{Entries, EntryForecast, StageForecast};
use crate::planning::rough_seconds;
use crate::platform::progress::human_bytes;
use anyhow::Result;
use serde_json::{Value, json};

/// Prints everything known about the entry `name`.
pub fn info(name: &str, as_json: bool) -> Result<()> {
    let (entry, store) = (named(name)?, open()?);
    let forecast = match entry.kind {
        Kind::Model => Entries::new().ok().and_then(|mut entries| entries.of(entry)),
        _ => None,
    };
    if as_json {
        return print_data(&format!("{}\n", about_in_json(entry, &store, forecast.as_ref())));
    }
    let lines = lines(entry, &store, forecast.as_ref());
    let columns = columns();
    let text: String = lines.iter().map(|(label, text)| labelled(label, text, columns)).collect();
    print(text.as_bytes())
}

/// Returns the lines to print, each a label and its text.
fn lines(entry: &Entry, store: &Store, forecast: Option<&EntryForecast>) -> Vec<(&'static str, String)> {
    let own = if entry.own { " (of your own weights.toml)" } else { "" };
    let mut lines = vec![("name", format!("{}{own}", entry.name)), ("about", entry.about.clone())];
    lines.extend(entry.world().map(|world| ("knows", world.about.clone())));
    lines.push(("licence", with_address(&entry.licence, store.licence_address(entry))));
    lines.extend(file(entry, store));
    if entry.kind == Kind::Model {
        lines.extend(parts(entry, store));
        lines.push(("run", run_text(&run(entry))));
        lines.extend(forecast.into_iter().flat_map(needs));
    } else {
        let users = catalogue::models().filter(|model| uses(model, entry)).map(|model| model.name.clone());
        let users = users.collect::<Vec<_>>().join(", ");
        lines.push(("used by", if users.is_empty() { "no model of the catalogue".to_string() } else { users }));
    }
    lines
}

fn with_address(text: &str, address: Option<String>) -> String {
    address.map_or(text.to_string(), |address| format!("{text} ({address})"))
}

/// Describes the entry's file: where it is on the hub, and how much of it is on this machine.
fn file(entry: &Entry, store: &Store) -> Vec<(&'static str, String)> {
    let Some(remote) = entry.remote() else { return vec![("file", "part of the program".to_string())] };
    let bytes = entry.bytes.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
    let hash = entry.sha256.clone();
    let found = store.look(entry);
    let here = match found.state {
        State::Here { path, bytes } => format!("yes, {}: {}", human_bytes(bytes), path.display()),
        State::Damaged { what, .. } => format!("damaged: {what}; `reel models pull {}` fetches it anew", entry.name),
        State::Partly { bytes } => {
            format!("{} of it; `reel models pull {}` continues from there", human_bytes(bytes), entry.name)
        }
        State::Absent => format!("no; `reel models pull {}` fetches it", entry.name),
    };
    let mut lines = vec![
        ("repository", format!("{}, revision {}", remote.repo, remote.revision)),
        ("file", format!("{}, {}{bytes}", remote.file, entry.size_text())),
        ("address", store.address(entry).unwrap_or_default()),
        (
            "SHA-256",
            hash.unwrap_or("not known before the download: the hub's own answer is asked for then".to_string()),
        ),
        ("here", here),
    ];
    lines.extend(found.remarks.into_iter().map(|remark| ("", remark)));
    lines
}

/// Lists a model's text encoders, tokenizer and upscaler, and how much of the download is missing.
fn parts(entry: &Entry, store: &Store) -> Vec<(&'static str, String)> {
    let said = |part: &Entry| {
        let here = if store.find(part).is_some() { ", here" } else { "" };
        format!("{} ({}{here})", part.name, part.size_text())
    };
    let mut lines = vec![];
    let encoders: Vec<String> = catalogue::text_encoders(entry).into_iter().map(said).collect();
    if let Some((first, others)) = encoders.split_first() {
        let others =
            if others.is_empty() { String::new() } else { format!("; or, with --text-encoder, {}", others.join(", ")) };
        lines.push(("encoder", format!("{first}{others}")));
    }
    let named = |name: &Option<String>| name.as_deref().and_then(catalogue::named);
    lines.extend(named(&entry.tokenizer).map(|part| ("tokenizer", said(part))));
    let upscaler = |part| format!("{}, between two passes; --upscaler none makes one", said(part));
    lines.extend(named(&entry.upscaler).map(|part| ("upscaler", upscaler(part))));
    if !entry.embedded {
        let all = store.parts(entry, None);
        let missing: Vec<&Entry> = all.iter().filter(|(_, path)| path.is_none()).map(|(part, _)| *part).collect();
        let rest = match missing.len() {
            0 => "all of it is here".to_string(),
            n if n == all.len() => "nothing of it is here".to_string(),
            _ => format!("{} of it are to come", size_of(missing.iter().copied())),
        };
        lines.push(("download", format!("{} in all; {rest}", size_of(all.iter().map(|(part, _)| *part)))));
    }
    lines
}

/// Describes memory and time of the clip that the model makes by default.
fn needs(forecast: &EntryForecast) -> Vec<(&'static str, String)> {
    let clip = forecast.clip;
    let fits = match forecast.fits {
        Some(true) => "; it fits this machine",
        Some(false) => "; it does not fit what is free on this machine",
        None => "",
    };
    let of = format!("for {}x{}, {} frames", clip.width, clip.height, clip.frames);
    let stages = |cell: &dyn Fn(&StageForecast) -> Option<String>| {
        let said = forecast.stages.iter().filter_map(|stage| Some(format!("{} {}", stage.stage.name(), cell(stage)?)));
        said.collect::<Vec<_>>().join(", ")
    };
    let each = stages(&|stage| Some(human_bytes(stage.memory)));
    let memory = format!("{} {of}{fits}; as it would run now: {each}", memory_of(forecast));
    let each = stages(&|stage| stage.time.seconds().map(rough_seconds));
    let time = forecast.time.describe().map(|time| ("time", format!("{time}: {each}")));
    std::iter::once(("memory", memory)).chain(time).collect()
}

/// Returns whether a model uses a part: tokenizer, upscaler or text encoder.
fn uses(model: &Entry, part: &Entry) -> bool {
    let named = [&model.tokenizer, &model.upscaler].into_iter().flatten().any(|name| *name == part.name);
    named || catalogue::text_encoders(model).iter().any(|encoder| encoder.name == part.name)
}

/// Returns the entry's run defaults, keyed as in `weights.toml`.
fn run(entry: &Entry) -> Value {
    said(serde_json::to_value(&entry.run).unwrap_or_default())
}

/// Drops keys whose value is null, at every depth.
fn said(mut value: Value) -> Value {
    if let Some(keys) = value.as_object_mut() {
        keys.retain(|_, value| !value.is_null());
        keys.values_mut().for_each(|value| *value = said(value.take()));
    }
    value
}

/// Formats run defaults as `width 704, height 480, first pass: steps 3`.
fn run_text(run: &Value) -> String {
    let Some(keys) = run.as_object().filter(|keys| !keys.is_empty()) else {
        return "the defaults of its convention".to_string();
    };
    let said = keys.iter().map(|(key, value)| match value {
        Value::Object(_) => format!("{key} pass: {}", run_text(value)),
        Value::String(text) => format!("{key} \"{text}\""),
        value => format!("{key} {value}"),
    });
    said.collect::<Vec<_>>().join(", ")
}

fn about_in_json(entry: &Entry, store: &Store, forecast: Option<&EntryForecast>) -> Value {
    let part = |part: &Entry| {
        let (state, path, bytes) = named_state(part, &store.state(part));
        json!({"name": part.name, "kind": kind(part), "bytes": part.size(), "licence": part.licence, "state": state,
               "bytes_here": bytes, "path": path, "url": store.address(part), "sha256": part.sha256})
    };
    let found = store.look(entry);
    let (state, path, bytes) = named_state(entry, &found.state);
    let named = |name: &Option<String>| name.as_deref().and_then(catalogue::named).map(part);
    let is_model = entry.kind == Kind::Model;
    let all = if is_model { store.parts(entry, None) } else { vec![(entry, store.find(entry))] };
    let sum = |parts: &mut dyn Iterator<Item = &Entry>| {
        parts.map(|part| part.size().or(Some(0).filter(|_| part.embedded))).sum::<Option<u64>>()
    };
    let stage =
        |one: &StageForecast| json!({"stage": one.stage.name(), "memory": one.memory, "seconds": one.time.seconds()});
    json!({
        "name": entry.name, "kind": kind(entry), "about": entry.about, "own": entry.own, "embedded": entry.embedded,
        "knows": entry.world().map(|world| world.about.clone()),
        "licence": entry.licence, "licence_url": store.licence_address(entry),
        "repo": entry.repo, "revision": entry.remote().map(|remote| remote.revision), "file": entry.file,
        "url": store.address(entry), "size": entry.size_text(), "bytes": entry.size(), "sha256": entry.sha256,
        "state": state, "bytes_here": bytes, "path": path, "remarks": found.remarks,
        "text_encoders": catalogue::text_encoders(entry).into_iter().map(part).collect::<Vec<_>>(),
        "tokenizer": named(&entry.tokenizer), "upscaler": named(&entry.upscaler),
        "download": sum(&mut all.iter().map(|(part, _)| *part)),
        "to_fetch": sum(&mut all.iter().filter(|(_, path)| path.is_none()).map(|(part, _)| *part)),
        "run": is_model.then(|| run(entry)),
        "clip": forecast.map(|o| json!({"width": o.clip.width, "height": o.clip.height, "frames": o.clip.frames})),
        "memory": forecast.map(|o| o.memory), "least_memory": forecast.map(|o| o.least_memory),
        "fits": forecast.and_then(|o| o.fits), "seconds": forecast.and_then(|o| o.time.seconds()),
        "stages": forecast.map(|o| o.stages.iter().map(stage).collect::<Vec<_>>()),
    })
}
