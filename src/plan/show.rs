//! A plan as `--dry-run` prints it: a table for people, or JSON.

use super::{Budget, Need, Plan, Requantised};
use crate::geometry::Extent;
use crate::pixels::Cut;
use crate::progress::{human_bytes, human_seconds};
use serde_json::{Value, json};

/// What else there is to say of a run, beside its plan.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub model: String,
    pub fps: f64,
    pub steps: usize,
    /// Pixels along a latent.
    pub space: usize,
    pub layers: usize,
    /// Whether tiles were asked for.
    pub tiled: bool,
    /// Where it is written, the least that takes, and what is free there.
    pub out: Option<String>,
    pub disk: Option<u64>,
    /// Files that are not here, and their bytes.
    pub downloads: Vec<(String, Option<u64>)>,
    /// Seconds of each stage, where there were runs to go by.
    pub seconds: Vec<Option<f64>>,
    /// Why it does not fit, and what would.
    pub refusal: Option<String>,
    /// The text encoder that was chosen, and why, where none was named.
    pub encoder: Option<String>,
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
        for (what, Cut { tiling, .. }, _) in cuts.into_iter().filter(|cut| cut.2) {
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
            "{}: {}x{}, {} frames at {} a second\n",
            report.model, asked.width, asked.height, asked.frames, report.fps
        );
        if asked != legal {
            text += &format!("made as {}x{}, {} frames, and cropped\n", legal.width, legal.height, legal.frames);
        }
        if let [first, last] = self.task.canvases[..] {
            let of = |canvas: Extent| format!("{}x{}", canvas.width, canvas.height);
            text += &format!("in two passes: {}, then {}\n", of(first), of(last));
        }
        let windows = match self.task.windows.len() / self.task.canvases.len().max(1) {
            1 => String::new(),
            n => format!(" in the longest of {n} windows"),
        };
        let passes = match self.task.passes {
            1 => String::new(),
            n => format!(" of {n} evaluations"),
        };
        let steps = if report.steps == 1 { "step" } else { "steps" };
        text += &format!("{} tokens{windows}, {} {steps}{passes}\n\n", self.task.tokens(), report.steps);

        let mut rows = vec![["stage", "weights", "at work", "held", "memory", "time"].map(String::from).to_vec()];
        for (i, need) in self.needs.iter().enumerate() {
            let time = report.seconds.get(i).copied().flatten().map(human_seconds).unwrap_or_default();
            let sizes = [need.weights, need.activations(), need.held, need.memory()].map(human_bytes);
            rows.push([vec![need.stage.name().to_string()], sizes.to_vec(), vec![time]].concat());
        }
        text += &columns(&rows);
        text += &format!("\nmemory    at most {}; {}\n", human_bytes(self.memory()), self.allowed());
        for remark in self.remarks(report.layers, report.space, report.tiled) {
            text += &format!("          {remark}\n");
        }
        if let Some(encoder) = &report.encoder {
            text += &format!("encoder   {encoder}\n");
        }
        if let Some(out) = &report.out {
            let disk = report.disk.map(|bytes| format!(", at least {}", human_bytes(bytes))).unwrap_or_default();
            text += &format!("output    `{out}`{disk}\n");
        }
        let sizes: Option<Vec<u64>> = report.downloads.iter().map(|d| d.1).collect();
        match (report.downloads.as_slice(), sizes) {
            ([], _) => text += "download  nothing\n",
            (files, sizes) => {
                let all =
                    sizes.map(|sizes| human_bytes(sizes.iter().sum())).unwrap_or_else(|| "size unknown".to_string());
                text += &format!("download  {all}\n");
                for (name, bytes) in files {
                    let size = bytes.map(human_bytes).unwrap_or_else(|| "size unknown".to_string());
                    text += &format!("          {name}: {size}\n");
                }
            }
        }
        let known: Vec<f64> = report.seconds.iter().copied().flatten().collect();
        text += &match known.len() {
            0 => "time      unknown: no earlier run like it on this machine\n".to_string(),
            n => {
                let sum = human_seconds(known.iter().sum());
                let of = if n < self.needs.len() { " for the stages that were run here before" } else { "" };
                format!("time      about {sum}{of}, by earlier runs on this machine\n")
            }
        };
        if let Some(refusal) = &report.refusal {
            text += &format!("\nit does not fit: {refusal}\n");
        }
        text
    }

    fn allowed(&self) -> String {
        match self.budget {
            Budget::Asked(bytes) => format!("--memory allows {}", human_bytes(bytes)),
            Budget::Free(bytes) => format!("{} are free, less a margin", human_bytes(bytes)),
            Budget::Unknown => "nobody knows what is free".to_string(),
        }
    }

    /// For programs.
    pub fn json(&self, report: &Report) -> Value {
        let extent = |e: crate::geometry::Extent| json!({"width": e.width, "height": e.height, "frames": e.frames});
        let stage = |(i, need): (usize, &Need)| {
            json!({
                "stage": need.stage.name(), "memory": need.memory(), "weights": need.weights, "activations": need.activations(),
                "held": need.held, "operations": need.operations, "seconds": report.seconds.get(i).copied().flatten(),
            })
        };
        let cut = |cut: Cut| {
            let tile = cut.tiling.map(|t| {
                json!({"width": t.width * report.space, "height": t.height * report.space, "overlap": t.overlap * report.space})
            });
            json!({"latent_frames": cut.pace.group, "parts": cut.pace.parts, "tile": tile})
        };
        json!({
            "model": report.model, "asked": extent(self.task.clip), "legal": extent(self.task.legal), "fps": report.fps,
            "steps": report.steps, "passes": self.task.passes, "tokens": self.task.tokens(), "windows": self.task.windows.len(),
            "memory": self.memory(), "budget": self.budget.bytes(), "fits": report.refusal.is_none(),
            "stages": self.needs.iter().enumerate().map(stage).collect::<Vec<_>>(),
            "resident_blocks": self.choices.resident, "blocks": report.layers,
            "encode": (!self.task.held.is_empty()).then(|| cut(self.choices.encode)), "decode": cut(self.choices.decode),
            "out": report.out, "disk": report.disk,
            "downloads": report.downloads.iter().map(|(name, bytes)| json!({"file": name, "bytes": bytes})).collect::<Vec<_>>(),
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
