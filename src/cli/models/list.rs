//! `reel models list`: what there is, what it takes, what fits this machine and where to start.

use super::text::wrapped;
use super::{kind, named_state, open};
use crate::cli::{columns, print, print_data};
use crate::hub::catalogue::{self, Entry, Kind};
use crate::hub::store::{Found, State, Store, size_of};
use crate::pipeline::entries::{Entries, EntryForecast};
use crate::planning::rough_seconds;
use crate::platform::progress::{Progress, human_bytes};
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Below this share of what a model takes at the most, the least that it takes is shown beside it.
const WORTH_SAYING: f64 = 0.9;

/// An entry, what is here of it, and what it takes.
struct Row {
    entry: &'static Entry,
    found: Found,
    /// All that it is run with, itself first.
    parts: Vec<&'static Entry>,
    forecast: Option<EntryForecast>,
}

impl Row {
    fn new(entry: &'static Entry, store: &Store, entries: Option<&mut Entries>) -> Self {
        let parts = match entry.kind {
            Kind::Model => store.parts(entry, None).into_iter().map(|(part, _)| part).collect(),
            _ => vec![entry],
        };
        Self { entry, found: store.look(entry), parts, forecast: entries.and_then(|entries| entries.of(entry)) }
    }

    fn download(&self) -> String {
        match (self.entry.embedded, self.parts.iter().any(|part| part.size().is_some())) {
            (true, _) => "built in".to_string(),
            (_, false) => "?".to_string(),
            _ => size_of(self.parts.iter().copied()).replace("about ", "~").replace("more than ", ">"),
        }
    }

    fn memory(&self) -> String {
        self.forecast.as_ref().map_or("?".to_string(), memory_of)
    }

    fn time(&self) -> String {
        self.forecast.as_ref().and_then(|forecast| forecast.time.seconds()).map_or("?".to_string(), rough_seconds)
    }

    fn fits(&self) -> Option<bool> {
        self.forecast.as_ref()?.fits
    }

    fn state(&self) -> String {
        match &self.found.state {
            State::Here { .. } => "yes".to_string(),
            State::Damaged { .. } => "damaged".to_string(),
            State::Partly { .. } => "partly".to_string(),
            State::Absent if self.entry.embedded => "yes".to_string(),
            State::Absent => String::new(),
        }
    }

    fn cells(&self) -> [String; 6] {
        let fits = match self.fits() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let name = self.entry.name.clone();
        [name, self.download(), self.memory(), self.time(), fits.to_string(), self.state()]
    }

    fn json(&self) -> Value {
        let e = self.entry;
        let (state, path, bytes) = named_state(e, &self.found.state);
        let forecast = self.forecast.as_ref();
        json!({
            "name": e.name, "kind": kind(e), "size": e.size_text(), "bytes": e.size(), "licence": e.licence,
            "about": e.about, "embedded": e.embedded, "own": e.own, "state": state, "bytes_here": bytes,
            "path": path, "repo": e.repo, "file": e.file, "text_encoder": e.text_encoder, "upscaler": e.upscaler,
            "download": self.parts.iter().map(|part| part.size().or(Some(0).filter(|_| part.embedded))).sum::<Option<u64>>(),
            "memory": forecast.map(|o| o.memory), "least_memory": forecast.map(|o| o.least_memory),
            "fits": forecast.and_then(|o| o.fits), "seconds": forecast.and_then(|o| o.time.seconds()),
            "remarks": self.found.remarks,
        })
    }
}

/// `14.2 GB`, or `5.2-14.2 GB` where it can do with less.
pub fn memory_of(forecast: &EntryForecast) -> String {
    let most = human_bytes(forecast.memory);
    if forecast.least_memory as f64 > WORTH_SAYING * forecast.memory as f64 {
        return most;
    }
    let least = human_bytes(forecast.least_memory);
    let unit = |text: &str| text.rsplit(' ').next().unwrap_or_default().to_string();
    match unit(&least) == unit(&most) {
        true => format!("{}-{most}", least.split(' ').next().unwrap_or_default()),
        false => format!("{least}-{most}"),
    }
}

/// Prints the list.
pub fn list(as_json: bool, progress: &Progress) -> Result<()> {
    let store = open()?;
    // a device that cannot be opened leaves the plans out, and no list
    let mut entries = Entries::new().ok();
    let rows = catalogue::entries().iter().map(|entry| Row::new(entry, &store, entries.as_mut()));
    let rows: Vec<Row> = rows.collect();
    if as_json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        return print_data(&format!("{}\n", Value::from(rows)));
    }
    let remarks = rows.iter().flat_map(|row| {
        let damage = match &row.found.state {
            State::Damaged { what, .. } => Some(format!("`{}` is damaged: {what}", row.entry.name)),
            _ => None,
        };
        damage.into_iter().chain(row.found.remarks.iter().cloned())
    });
    let mut said = BTreeSet::new(); // what several files share is said once
    remarks.filter(|remark| said.insert(remark.clone())).for_each(|remark| progress.note(&remark));
    print(text(&rows, columns()).as_bytes())
}

fn text(rows: &[Row], columns: usize) -> String {
    let (models, parts): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.entry.kind == Kind::Model);
    let mut text = models_text(&models, columns);
    let note = "download: with text encoder and upscaler; memory and time: of the clip that each makes by default, time an estimate; fits: what is free on this machine now";
    text.push_str(&wrapped(note, "", columns));
    text.push('\n');
    text.push_str(&wrapped(
        "parts; a model is pulled with those that it needs, and --text-encoder takes another one:",
        "",
        columns,
    ));
    text.push_str(&parts_text(&parts, columns));
    text.push('\n');
    text + &wrapped(&start(&models), "", columns)
}

/// A table of the models, with a line of text below each.
fn models_text(models: &[&Row], columns: usize) -> String {
    let head = ["model", "download", "memory", "time", "fits", "here"].map(String::from);
    let cells: Vec<[String; 6]> = models.iter().map(|row| row.cells()).collect();
    let width = |i: usize| cells.iter().chain([&head]).map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let is_wide = widths.iter().sum::<usize>() + 2 * 5 > columns;
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).enumerate().map(|(i, (cell, width))| match i {
            0 | 4 | 5 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = if is_wide { String::new() } else { line(&head) };
    for (row, cells) in models.iter().zip(&cells) {
        text.push_str(&match is_wide {
            true => {
                let said = head.iter().zip(cells).skip(1).filter(|(_, cell)| !cell.is_empty());
                let said: Vec<String> = said.map(|(head, cell)| format!("{head} {cell}")).collect();
                format!("{}\n{}", cells[0], wrapped(&said.join(", "), "  ", columns))
            }
            false => line(cells),
        });
        let own = if row.entry.own { "; of your own weights.toml" } else { "" };
        let about = format!("{}; licence: {}{own}", row.entry.about, row.entry.licence);
        text.push_str(&wrapped(&about, "  ", columns));
        if let Some(world) = row.entry.world() {
            text.push_str(&wrapped(&format!("knows: {}", world.short), "  ", columns));
        }
    }
    text
}

/// One line each, where it fits.
fn parts_text(parts: &[&Row], columns: usize) -> String {
    let width = |cell: &dyn Fn(&Row) -> String| parts.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0);
    let (names, sizes) = (width(&|row| row.entry.name.clone()), width(&|row| row.download()));
    let states = width(&Row::state);
    let lines = parts.iter().map(|row| {
        let gap = if states > 0 { "  " } else { "" };
        let head = format!("{:names$}  {:>sizes$}{gap}{:states$}", row.entry.name, row.download(), row.state());
        let own = if row.entry.own { "; of your own weights.toml" } else { "" };
        let about = format!("{}{own}", row.entry.about);
        let room = columns.saturating_sub(head.chars().count() + 2);
        match about.chars().count() <= room {
            true => format!("{head}  {about}\n"),
            false => format!("{}\n{}", head.trim_end(), wrapped(&about, "  ", columns)),
        }
    });
    lines.collect()
}

/// Which model to take first: the quickest that makes real videos and fits this machine.
fn start(models: &[&Row]) -> String {
    let real = models.iter().filter(|row| !row.entry.embedded && !row.entry.own && row.fits() != Some(false));
    let known = |row: &Row| row.entry.matches.as_ref().map(|known| (known.distilled, known.layers));
    let distilled = real.filter(|row| known(row).is_some_and(|(distilled, _)| distilled));
    // of the smallest the newest, which is the last
    let best = distilled.rev().min_by_key(|row| known(row).and_then(|(_, layers)| layers));
    match best {
        Some(row) if matches!(row.found.state, State::Here { .. }) => format!(
            "start with {0}, which is here: `reel generate \"PROMPT\" --model {0}`; `reel models info {0}` says all of it",
            row.entry.name
        ),
        Some(row) => format!(
            "start with {0}: `reel models pull {0}` ({1}); `reel models info {0}` says all of it",
            row.entry.name,
            row.download()
        ),
        None => "start with tiny, which is built in: nothing else fits the memory that is free here".to_string(),
    }
}
