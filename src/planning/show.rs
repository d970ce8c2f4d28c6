//! A plan as `--dry-run` prints it: a table for people, or JSON.

use crate::job::geometry::Extent;
use crate::planning::cut::VaeChunking;
use crate::planning::{Budget, Need, Plan, Requantised, Window};
use crate::platform::progress::{counted, human_bytes, human_seconds};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What else there is to say of a run, beside its plan.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub model: String,
    pub fps: f64,
    /// Pixels along a latent.
    pub space: usize,
    pub layers: usize,
    /// Whether tiles were asked for.
    pub tiled: bool,
    /// Where it is written; `SEED` stands for a seed that the run will draw.
    pub out: Option<String>,
    /// Times that it is enlarged, and the size of it then.
    pub scale: usize,
    pub output: Option<Extent>,
    /// The least that it takes there, however well it compresses: a lower bound.
    pub disk: Option<u64>,
    /// Files that are not here, and their bytes.
    pub downloads: Vec<Download>,
    /// Where they go, what is free there, and what of them is still to come.
    pub download_room: Option<Room>,
    /// How long each stage takes, by the plan's order.
    pub times: Vec<Time>,
    /// A smaller clip, where this one takes long.
    pub offer: Option<Offer>,
    /// Why it does not fit, and what would.
    pub refusal: Option<String>,
    /// The text encoder that was chosen, and why, where none was named.
    pub encoder: Option<String>,
}

/// A file that is to be fetched.
#[derive(Clone, Debug)]
pub struct Download {
    pub name: String,
    /// `None`: nobody knows.
    pub bytes: Option<u64>,
}

/// The disk that downloads go to.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    pub folder: PathBuf,
    pub free: u64,
    /// Bytes that are to come, as far as the catalogue knows.
    pub need: u64,
}

impl Room {
    pub fn fits(&self) -> bool {
        self.need <= self.free
    }

    /// `; 1.20 TB are free in `FOLDER``.
    fn describe(&self) -> String {
        let fits = if self.fits() { "" } else { ": they do not fit" };
        format!("; {} are free in `{}`{fits}", human_bytes(self.free), self.folder.display())
    }
}

/// How long something takes, and how that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Time {
    /// By earlier runs of the same kind on this machine.
    Measured(f64),
    /// By the operations, and this machine's speed.
    Estimated(f64),
    #[default]
    Unknown,
}

impl Time {
    pub fn seconds(self) -> Option<f64> {
        match self {
            Time::Measured(seconds) | Time::Estimated(seconds) => Some(seconds),
            Time::Unknown => None,
        }
    }

    /// Names where it is from, for programs.
    fn source(self) -> Option<&'static str> {
        match self {
            Time::Measured(_) => Some("earlier runs"),
            Time::Estimated(_) => Some("estimate"),
            Time::Unknown => None,
        }
    }

    /// Adds up the times of stages: unknown where one is, and an estimate where one is.
    pub fn sum(times: &[Time]) -> Time {
        times.iter().fold(Time::Measured(0.0), |sum, time| match (sum, *time) {
            (Time::Unknown, _) | (_, Time::Unknown) => Time::Unknown,
            (Time::Measured(a), Time::Measured(b)) => Time::Measured(a + b),
            (sum, time) => Time::Estimated(sum.seconds().unwrap_or(0.0) + time.seconds().unwrap_or(0.0)),
        })
    }

    /// `about 40 min (estimate)`, `about 15.9 s`; nothing where it is not known.
    pub fn describe(self) -> Option<String> {
        match self {
            Time::Measured(seconds) => Some(format!("about {}", human_seconds(seconds))),
            Time::Estimated(seconds) => Some(format!("about {} (estimate)", rough_seconds(seconds))),
            Time::Unknown => None,
        }
    }
}

/// A smaller clip, and how long it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// The flags that ask for it.
    pub flags: String,
    pub clip: Extent,
    pub time: Time,
}

impl Offer {
    /// `--size 512x320 --frames 49 would take about 6 min (estimate)`.
    pub fn describe(&self) -> String {
        format!("{} would take {}", self.flags, self.time.describe().unwrap_or_default())
    }
}

/// An estimate's seconds with no more digits than it deserves: `6 s`, `40 min`, `2 h 10 min`, `33 h`, `5 days`.
pub fn rough_seconds(seconds: f64) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 60.0 * MINUTE;
    const DAY: f64 = 24.0 * HOUR;
    match seconds {
        s if s < 9.5 => format!("{:.0} s", s.max(1.0)),
        s if s < 57.5 => format!("{:.0} s", (s / 5.0).round() * 5.0),
        s if s < 9.5 * MINUTE => format!("{:.0} min", (s / MINUTE).max(1.0)),
        s if s < 57.5 * MINUTE => format!("{:.0} min", (s / MINUTE / 5.0).round() * 5.0),
        s if s < 9.75 * HOUR => {
            let tens = (s / MINUTE / 10.0).round() as u64;
            match (tens / 6, tens % 6 * 10) {
                (hours, 0) => format!("{hours} h"),
                (hours, minutes) => format!("{hours} h {minutes} min"),
            }
        }
        s if s < 4.0 * DAY => format!("{:.0} h", s / HOUR),
        s => format!("{:.0} days", s / DAY),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

impl Plan {
    /// How it is cut, where that costs time or changes pictures: a line each.
    /// - `layers`: of the transformer. `space`: pixels along a latent. `asked`: tiles were asked for.
    pub fn remarks(&self, layers: usize, space: usize, asked: bool) -> Vec<String> {
        let (why, mut all) = (self.why(), vec![]);
        let resident = self.choices.resident;
        if resident < layers {
            all.push(format!(
                "{resident} of the transformer's {layers} blocks stay in memory, the others are opened at each step ({why})"
            ));
            all.extend(match &self.requantised {
                None => None,
                Some(Requantised::Once(bytes, folder)) => Some(format!(
                    "they are quantised once, into a file of {} in `{}` that goes with the run (--quantize-cache keeps one)",
                    human_bytes(*bytes),
                    folder.display()
                )),
                Some(Requantised::EachTime) => Some(
                    "they are quantised anew each time, which takes longer: there is no room for a file of them (`reel models quantize` makes one)"
                        .to_string(),
                ),
            });
        }
        let encodes = !self.task.held.is_empty();
        let cuts = [("encoding", self.choices.encode, encodes), ("decoding", self.choices.decode, true)];
        for (what, VaeChunking { tiling, .. }, _) in cuts.into_iter().filter(|cut| cut.2) {
            let (h, w) = (self.task.canvas().height / space, self.task.canvas().width / space);
            if let Some(tiling) = tiling.filter(|tiling| !tiling.is_whole(h, w)) {
                let [w, h, overlap] = [tiling.width, tiling.height, tiling.overlap].map(|n| n * space);
                let why = if asked { "--vae-tile" } else { &why };
                all.push(format!("{what} in tiles of {w}x{h} that overlap by {overlap} ({why})"));
            }
        }
        all
    }

    fn why(&self) -> String {
        match self.budget {
            Budget::Asked(bytes) => format!("--memory {}", human_bytes(bytes)),
            Budget::Free(bytes) => format!("{} are free", human_bytes(bytes)),
            Budget::Unknown => "as asked for".to_string(),
        }
    }

    /// For people.
    pub fn table(&self, report: &Report) -> String {
        let (asked, legal) = (self.task.clip, self.task.legal);
        let mut text = format!(
            "{}: {}x{}, {} at {} a second\n",
            report.model,
            asked.width,
            asked.height,
            counted(asked.frames, "frames"),
            report.fps
        );
        if asked != legal {
            text += &format!("made as {}x{}, {} frames, and cropped\n", legal.width, legal.height, legal.frames);
        }
        if let [first, last] = self.task.canvases[..] {
            let of = |canvas: Extent| format!("{}x{}", canvas.width, canvas.height);
            text += &format!("in two passes: {}, then {}\n", of(first), of(last));
        }
        for pass in 0..self.task.canvases.len() {
            let name = ["first pass: ", "second pass: "].get(pass).filter(|_| self.task.canvases.len() > 1);
            text += &format!("{}{}\n", name.unwrap_or(&""), self.steps_of(pass));
        }
        text += "\n";

        let mut rows = vec![["stage", "weights", "at work", "held", "memory", "time"].map(String::from).to_vec()];
        for (i, need) in self.needs.iter().enumerate() {
            let time = match report.times.get(i) {
                Some(Time::Measured(seconds)) => human_seconds(*seconds),
                Some(Time::Estimated(seconds)) => format!("~{}", rough_seconds(*seconds)),
                Some(Time::Unknown) | None => String::new(),
            };
            let sizes = [need.weights, need.activations(), need.held, need.memory()].map(human_bytes);
            rows.push([vec![need.stage.name().to_string()], sizes.to_vec(), vec![time]].concat());
        }
        text += &columns(&rows);
        let fits = if report.refusal.is_some() { ": it does not fit" } else { "" };
        text += &format!("\nmemory    at most {}; {}{fits}\n", human_bytes(self.memory()), self.allowed());
        for remark in self.remarks(report.layers, report.space, report.tiled) {
            text += &format!("          {remark}\n");
        }
        if let Some(encoder) = &report.encoder {
            text += &format!("encoder   {encoder}\n");
        }
        if let Some(output) = report.output.filter(|_| report.scale > 1) {
            text += &format!("enlarged {} times on output, to {}x{}\n", report.scale, output.width, output.height);
        }
        if let Some(out) = &report.out {
            let disk = report.disk.map(|bytes| format!(", at least {}", human_bytes(bytes))).unwrap_or_default();
            text += &format!("output    `{out}`{disk}\n");
        }
        let sizes: Option<Vec<u64>> = report.downloads.iter().map(|download| download.bytes).collect();
        match (report.downloads.as_slice(), sizes) {
            ([], _) => text += "download  nothing\n",
            (files, sizes) => {
                let all =
                    sizes.map(|sizes| human_bytes(sizes.iter().sum())).unwrap_or_else(|| "size unknown".to_string());
                let room = report.download_room.as_ref().map(Room::describe).unwrap_or_default();
                text += &format!("download  {all}{room}\n");
                for Download { name, bytes } in files {
                    let size = bytes.map(human_bytes).unwrap_or_else(|| "size unknown".to_string());
                    text += &format!("          {name}: {size}\n");
                }
            }
        }
        text += &format!("time      {}\n", self.headline(&report.times));
        if let Some(offer) = &report.offer {
            text += &format!("          {}\n", offer.describe());
        }
        text
    }

    /// Tokens, steps and evaluations of one pass: `2112 tokens in the longest of 3 windows, 120 steps of up to 3 evaluations`.
    fn steps_of(&self, pass: usize) -> String {
        let windows = self.task.of_pass(pass);
        let tokens = windows.clone().map(|window| window.tokens).max().unwrap_or(0);
        let steps: usize = windows.clone().map(|window| window.steps).sum();
        let evaluations: usize = windows.clone().map(|window| window.evaluations).sum();
        let longest = match windows.count() {
            1 => String::new(),
            n => format!(" in the longest of {n} windows"),
        };
        let each = match evaluations.checked_div(steps) {
            _ if evaluations == steps => String::new(),
            Some(each) if each * steps == evaluations => format!(" of {each} evaluations"),
            _ => format!(", {evaluations} evaluations"),
        };
        let noun = if steps == 1 { "step" } else { "steps" };
        format!("{tokens} tokens{longest}, {steps} {noun}{each}")
    }

    /// How long it takes in all, and how that is known. What is not known of one stage is not known of the whole.
    fn headline(&self, times: &[Time]) -> String {
        let names = |wanted: fn(&Time) -> bool| {
            let stages = self.needs.iter().zip(times).filter(|(_, time)| wanted(time));
            listed(&stages.map(|(need, _)| need.stage.name()).collect::<Vec<_>>())
        };
        let known = names(|time| time.seconds().is_some());
        match Time::sum(times) {
            _ if known.is_empty() => "unknown: no earlier run like it on this machine".to_string(),
            Time::Unknown => {
                let least: f64 = times.iter().filter_map(|time| time.seconds()).sum();
                let missing = names(|time| *time == Time::Unknown);
                format!("unknown: at least {} for {known}, and {missing} never ran here", human_seconds(least))
            }
            Time::Measured(seconds) => format!("about {}, by earlier runs on this machine", human_seconds(seconds)),
            Time::Estimated(seconds) => {
                let by = match names(|time| matches!(time, Time::Measured(_))) {
                    none if none.is_empty() => "by this machine's speed".to_string(),
                    some => {
                        let others = names(|time| matches!(time, Time::Estimated(_)));
                        format!("{some} by earlier runs, {others} by this machine's speed")
                    }
                };
                format!("about {} (estimate, {by})", rough_seconds(seconds))
            }
        }
    }

    fn allowed(&self) -> String {
        match self.budget {
            Budget::Asked(bytes) => format!("--memory allows {}", human_bytes(bytes)),
            Budget::Free(bytes) => format!("{} are free, less a margin", human_bytes(bytes)),
            Budget::Unknown => "how much is free is not known here".to_string(),
        }
    }

    /// For programs.
    pub fn json(&self, report: &Report) -> Value {
        let extent =
            |e: crate::job::geometry::Extent| json!({"width": e.width, "height": e.height, "frames": e.frames});
        let time = |i: usize| report.times.get(i).copied().unwrap_or_default();
        let stage = |(i, need): (usize, &Need)| {
            json!({
                "stage": need.stage.name(), "memory": need.memory(), "weights": need.weights, "activations": need.activations(),
                "held": need.held, "operations": need.operations,
                "seconds": time(i).seconds(), "seconds_from": time(i).source(),
            })
        };
        let pass = |(pass, canvas): (usize, &Extent)| {
            let windows = self.task.of_pass(pass);
            let sum = |of: fn(&Window) -> usize| windows.clone().map(of).sum::<usize>();
            json!({
                "width": canvas.width, "height": canvas.height,
                "tokens": windows.clone().map(|window| window.tokens).max(), "windows": windows.clone().count(),
                "steps": sum(|window| window.steps), "evaluations": sum(|window| window.evaluations),
            })
        };
        let sum = |of: fn(&Window) -> usize| self.task.windows.iter().map(of).sum::<usize>();
        let all = Time::sum(&report.times);
        let offer = report.offer.as_ref().map(|offer| {
            json!({"flags": offer.flags, "width": offer.clip.width, "height": offer.clip.height, "frames": offer.clip.frames, "seconds": offer.time.seconds()})
        });
        let cut = |cut: VaeChunking| {
            let tile = cut.tiling.map(|t| {
                json!({"width": t.width * report.space, "height": t.height * report.space, "overlap": t.overlap * report.space})
            });
            json!({"latent_frames": cut.chunking.latent_frames, "parts": cut.chunking.slices, "tile": tile})
        };
        json!({
            "model": report.model, "asked": extent(self.task.clip), "legal": extent(self.task.legal), "fps": report.fps,
            "passes": self.task.canvases.len(), "per_pass": self.task.canvases.iter().enumerate().map(pass).collect::<Vec<_>>(),
            "steps": sum(|window| window.steps), "evaluations": sum(|window| window.evaluations), "tokens": self.task.tokens(),
            "windows": self.task.of_pass(0).count(), "scenes": self.task.scenes.len(),
            "memory": self.memory(), "budget": self.budget.bytes(), "fits": report.refusal.is_none(),
            "stages": self.needs.iter().enumerate().map(stage).collect::<Vec<_>>(),
            "resident_blocks": self.choices.resident, "blocks": report.layers,
            "encode": (!self.task.held.is_empty()).then(|| cut(self.choices.encode)), "decode": cut(self.choices.decode),
            "seconds": all.seconds(), "seconds_from": all.source(), "offer": offer,
            "out": report.out, "disk": report.disk, "disk_at_least": report.disk,
            "scale": report.scale, "output": report.output.map(extent),
            "downloads": report.downloads.iter().map(|download| json!({"file": download.name, "bytes": download.bytes})).collect::<Vec<_>>(),
            "download_free": report.download_room.as_ref().map(|room| room.free),
            "download_fits": report.download_room.as_ref().map(Room::fits),
            "refusal": report.refusal, "text_encoder": report.encoder,
        })
    }
}

/// Rows in columns: the first to the left, the others to the right; columns without content are left out.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let has = |i: usize| rows.iter().skip(1).any(|row| !row[i].is_empty());
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().filter(|(i, _)| has(*i)).map(|(i, cell)| match i {
            0 => format!("{cell:8}"),
            _ => format!("{cell:>0$}", width(i)),
        });
        text += &format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_rounded() {
        let said = [0.01, 6.2, 41.0, 59.0, 80.0, 570.0, 2400.0, 3500.0, 7800.0, 118_800.0, 1e6].map(rough_seconds);
        assert_eq!(
            said,
            ["1 s", "6 s", "40 s", "1 min", "1 min", "10 min", "40 min", "1 h", "2 h 10 min", "33 h", "12 days"]
        );
    }

    #[test]
    fn downloads_are_held_against_the_disk() {
        let room = |free| Room { folder: "/cache".into(), free, need: 6_340_000_000 };
        assert_eq!(room(1_200_000_000_000).describe(), "; 1.20 TB are free in `/cache`");
        assert!(room(6_340_000_000).fits());
        assert_eq!(room(5_000_000_000).describe(), "; 5.00 GB are free in `/cache`: they do not fit");
    }

    #[test]
    fn what_is_not_known_of_a_stage_is_not_known_of_the_whole() {
        use Time::{Estimated, Measured, Unknown};
        assert_eq!(Time::sum(&[Measured(1.0), Measured(2.0)]), Measured(3.0));
        assert_eq!(Time::sum(&[Measured(1.0), Estimated(2.0), Measured(4.0)]), Estimated(7.0));
        assert_eq!(Time::sum(&[Measured(1.0), Unknown, Estimated(2.0)]), Unknown);
        assert_eq!(Measured(15.94).describe().unwrap(), "about 15.9 s");
        assert_eq!(Estimated(2400.0).describe().unwrap(), "about 40 min (estimate)");
        assert_eq!(Unknown.describe(), None);
    }
}
