//! How a run is cut to fit a memory. In this order, each stage by itself, and only as far as it has to be:
//! 1. text: always layer by layer; no choice is left. What does not fit needs a smaller text encoder.
//! 2. denoise: as many of the transformer's blocks stay in memory as fit, from the first on; the others are opened at each
//!    step and let go again. That costs reading them anew; nothing in the result changes. Where they are to be quantised, that
//!    is done once, into a file that goes with the run, if the disk has room for it.
//! 3. encode and decode: fewer latent frames at a time, down to one; and the frames that the decoder makes of it in parts,
//!    down to one frame. Nothing in the result changes.
//! 4. encode and decode: overlapping tiles, halved until they fit. That changes the pictures a little where tiles meet.
//!
//! Attention needs no choice: its scores never exist all at once, on any device.

use crate::hub::catalogue;
use crate::job::geometry::{Extent, Geometry};
use crate::job::tiles::Tiles;
use crate::nn::stream::Chunking;
use crate::nn::tiles::Tiling;
use crate::planning::cut::{self, VaeChunking};
use crate::planning::{Model, Need, Stage, Task, need, needs};
use crate::platform::device::Compute;
use crate::platform::machine;
use crate::platform::progress::human_bytes;
use anyhow::{Result, bail, ensure};

/// Parts that the frames of one latent frame are cut into at most, in the decoder: at its end there are so many.
const MOST_PARTS: usize = 8;

/// What a run may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// `--memory`.
    Asked(u64),
    /// What is free, less a margin.
    Free(u64),
    /// Not known: of a GPU, or where the system does not say.
    Unknown,
}

impl Budget {
    pub fn bytes(self) -> Option<u64> {
        match self {
            Budget::Asked(bytes) | Budget::Free(bytes) => Some(bytes),
            Budget::Unknown => None,
        }
    }
}

/// How a run is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Blocks of the transformer that stay in memory, from the first on.
    pub resident: usize,
    /// Whether the others are quantised once, into a file that is gone after the run, and not each time they are opened.
    pub scratch: bool,
    pub encode: VaeChunking,
    pub decode: VaeChunking,
}

impl Choices {
    /// What is done where memory is plenty.
    pub fn plenty(model: &Model, task: &Task, tiling: Option<Tiling>, compute: &Compute) -> Self {
        let group = cut::group(task.canvas().width, task.canvas().height, model.config.geometry(), &compute.device);
        let cut = VaeChunking { chunking: Chunking { latent_frames: group, slices: 1 }, tiling };
        Self { resident: model.config.blocks(), scratch: false, encode: cut, decode: cut }
    }

    /// What takes the least memory that a run can be cut to, with these tiles.
    pub fn least(tiling: Option<Tiling>) -> Self {
        let cut = VaeChunking { chunking: Chunking { latent_frames: 1, slices: MOST_PARTS }, tiling };
        Self { resident: 0, scratch: false, encode: cut, decode: cut }
    }
}

/// `--vae-tile` and `--vae-overlap` in latents.
/// - Errors on sizes that are no whole number of latents.
pub fn tiling(tiles: Tiles, overlap: Option<usize>, space: usize) -> Result<Option<Tiling>> {
    let Tiles::Of(width, height) = tiles else { return Ok(None) };
    ensure!(
        width > 0 && height > 0 && width.is_multiple_of(space) && height.is_multiple_of(space),
        "--vae-tile {width}x{height}: each side has to be a multiple of {space}\n  fix: --vae-tile {}x{}",
        width.next_multiple_of(space).max(space),
        height.next_multiple_of(space).max(space)
    );
    let (width, height) = (width / space, height / space);
    let most = width.min(height).saturating_sub(1);
    let overlap = match overlap {
        None => cut::overlap(height, width),
        Some(overlap) => {
            ensure!(
                overlap.is_multiple_of(space) && overlap / space <= most,
                "--vae-overlap {overlap}: it has to be a multiple of {space}, at most {} with this tile\n  fix: --vae-overlap {}",
                most * space,
                overlap.next_multiple_of(space).min(most * space)
            );
            overlap / space
        }
    };
    Ok(Some(Tiling { height, width, overlap }))
}

/// What choices are made by.
pub struct Chooser<'a> {
    pub model: &'a Model,
    pub task: &'a Task,
    /// Plans the same with a clip of another size; `None` where that cannot be made.
    pub resized: &'a dyn Fn(Extent) -> Option<Task>,
    /// `--vae-tile` as asked for, and in latents.
    pub tiles: Tiles,
    pub tiling: Option<Tiling>,
    pub budget: Budget,
    pub compute: &'a Compute,
}

impl Chooser<'_> {
    /// Cuts a run so that each stage stays within the budget.
    /// - Errors where a stage cannot be cut so far; the error names what would fit.
    pub fn choose(&self) -> Result<Choices> {
        let Self { model, task, tiles, tiling, compute, .. } = *self;
        let mut choices = Choices::plenty(model, task, tiling, self.compute);
        let Some(most) = self.budget.bytes() else { return Ok(choices) };
        let of = |choices: &Choices, stage: Stage| need(model, task, choices, compute, stage);
        let fits = |choices: &Choices, stage: Stage| of(choices, stage).is_none_or(|need| need.memory() <= most);
        let refuse = |choices: &Choices, stage: Stage| match of(choices, stage) {
            Some(need) => self.refusal(&need),
            None => Ok(()),
        };
        if !fits(&choices, Stage::Text) {
            refuse(&choices, Stage::Text)?;
        }
        // bytes fall with every block that is not kept, but for the first one: then the largest has to pass
        while choices.resident > 0 && !fits(&choices, Stage::Denoise) {
            choices.resident -= 1;
        }
        if !fits(&choices, Stage::Denoise) {
            refuse(&choices, Stage::Denoise)?;
        }
        choices.scratch = choices.resident < model.config.blocks() && model.has_room();
        let space = model.config.geometry().space;
        let (h, w) = (task.canvas().height / space, task.canvas().width / space);
        for stage in [Stage::Encode, Stage::Decode] {
            let cut = |choices: &mut Choices, cut: VaeChunking| match stage {
                Stage::Encode => choices.encode = cut,
                _ => choices.decode = cut,
            };
            let mut now = Choices::plenty(model, task, tiling, self.compute).decode;
            while !fits(&choices, stage) {
                let VaeChunking { chunking: Chunking { latent_frames: group, slices: parts }, tiling } = now;
                now = if group > 1 {
                    VaeChunking { chunking: Chunking { latent_frames: group / 2, slices: parts }, tiling }
                } else if parts < MOST_PARTS && stage == Stage::Decode {
                    VaeChunking { chunking: Chunking { latent_frames: group, slices: 2 * parts }, tiling }
                } else if let Some(smaller) = cut::smaller(tiling, h, w).filter(|_| tiles == Tiles::Auto) {
                    VaeChunking { chunking: Chunking { latent_frames: group, slices: parts }, tiling: Some(smaller) }
                } else {
                    refuse(&choices, stage)?;
                    break;
                };
                cut(&mut choices, now);
            }
        }
        Ok(choices)
    }

    /// Why a stage cannot be had, and what could.
    fn refusal(&self, need: &Need) -> Result<()> {
        let Extent { width, height, frames } = self.task.clip;
        let (most, allows) = match self.budget {
            Budget::Asked(bytes) => (bytes, format!("--memory allows {}", human_bytes(bytes))),
            Budget::Free(bytes) => (bytes, format!("{} are free", human_bytes(bytes))),
            Budget::Unknown => return Ok(()),
        };
        let what = match need.stage {
            Stage::Text => "encoding the prompt",
            Stage::Encode => "encoding what is held",
            Stage::Denoise => "one denoising step",
            Stage::Decode => "decoding",
        };
        let mut fixes = vec![];
        match need.stage {
            Stage::Text => {
                let encoders = catalogue::entries().iter().filter(|entry| entry.kind == catalogue::Kind::TextEncoder);
                let smaller = encoders.filter(|e| e.size().is_some_and(|bytes| bytes < self.model.text.1.total()));
                fixes.extend(smaller.map(|e| format!("--text-encoder {}", e.name)).take(3));
            }
            Stage::Denoise | Stage::Encode | Stage::Decode => {
                let clips = smaller_clips(self.task.clip, self.model.config.geometry()).into_iter();
                let found = clips.filter_map(|clip| (self.resized)(clip)).find(|task| self.can_be_cut(task));
                fixes.extend(found.map(|task| task.flags_from(self.task)));
            }
        }
        if matches!(need.stage, Stage::Encode | Stage::Decode) && self.tiles != Tiles::Auto {
            fixes.insert(0, "leave out --vae-tile, or make it smaller".to_string());
        }
        if matches!(self.budget, Budget::Asked(_)) {
            // a GPU's memory is not known here
            let has = self.compute.device.is_cpu().then(machine::all_memory).flatten();
            fixes.extend(more_memory(self.least(), has));
        }
        if fixes.is_empty() {
            fixes.push("a smaller model, or a machine with more memory".to_string());
        }
        bail!(
            "{width}x{height}, {frames} frames: {what} with this model needs at least {} of memory, and {allows}\n  fix: {}",
            human_bytes(need.memory().max(most + 1)),
            fixes.join(", or ")
        )
    }

    /// The least memory that the whole run can be cut to, as [`Chooser::choose`] cuts it.
    fn least(&self) -> u64 {
        let Self { model, task, compute, .. } = *self;
        let mut choices = Choices::least(self.tiling);
        let of = |choices: &Choices, stage: Stage| need(model, task, choices, compute, stage).map_or(0, |n| n.memory());
        let text = of(&choices, Stage::Text);
        let blocks = 0..=model.config.blocks();
        let denoise = blocks.map(|resident| of(&Choices { resident, ..choices }, Stage::Denoise)).min().unwrap_or(0);
        let mut least = [u64::MAX; 2];
        let space = model.config.geometry().space;
        let (h, w) = (task.canvas().height / space, task.canvas().width / space);
        loop {
            for (least, stage) in least.iter_mut().zip([Stage::Encode, Stage::Decode]) {
                *least = of(&choices, stage).min(*least);
            }
            match cut::smaller(choices.decode.tiling, h, w).filter(|_| self.tiles == Tiles::Auto) {
                Some(tiling) => choices = Choices::least(Some(tiling)),
                None => break,
            }
        }
        least.into_iter().fold(text.max(denoise), u64::max)
    }

    /// Whether a task can be cut to fit: as [`Chooser::choose`], without looking for a way out.
    fn can_be_cut(&self, task: &Task) -> bool {
        let Some(most) = self.budget.bytes() else { return true };
        let space = self.model.config.geometry().space;
        let (h, w) = (task.canvas().height / space, task.canvas().width / space);
        let mut choices = Choices::least(self.tiling);
        loop {
            if needs(self.model, task, &choices, self.compute).iter().all(|need| need.memory() <= most) {
                return true;
            }
            match cut::smaller(choices.decode.tiling, h, w).filter(|_| self.tiles == Tiles::Auto) {
                Some(tiling) => choices = Choices::least(Some(tiling)),
                None => return false,
            }
        }
    }
}

impl Task {
    /// The flags that ask for this clip in place of `other`, which differs in nothing else.
    pub fn flags_from(&self, other: &Task) -> String {
        let (now, before) = (self.clip, other.clip);
        let size = format!("--size {}x{}", now.width, now.height);
        let frames = format!("--frames {}", now.frames.saturating_sub(self.context));
        match ((now.width, now.height) != (before.width, before.height), now.frames != before.frames) {
            (true, true) => format!("{size} {frames}"),
            (false, true) => frames,
            _ => size,
        }
    }
}

/// The flag that allows so much memory; `None` where the machine has less.
/// - `has`: bytes of memory; `None` where that is not known.
fn more_memory(least: u64, has: Option<u64>) -> Option<String> {
    let allow = || format!("--memory {}, with which all stages fit", rounded_up(least));
    has.is_none_or(|has| least <= has).then(allow)
}

/// A size that can be typed and is at least `bytes`: `4.3GiB`, `812MiB`.
fn rounded_up(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes.div_ceil(MIB) {
        mib if mib < 1024 => format!("{mib}MiB"),
        mib => format!("{:.1}GiB", (mib as f64 / 102.4).ceil() / 10.0),
    }
}

/// How often a size is made smaller, and the frames that are tried with each where that is not enough.
const MOST_SIZES: usize = 20;
const FEW_FRAMES: usize = 97;

/// Clips with less to make: fewer frames first, then smaller pictures, then both.
pub fn smaller_clips(clip: Extent, geometry: Geometry) -> Vec<Extent> {
    let mut all = vec![];
    let mut frames = clip.frames;
    while frames > geometry.time + 1 {
        frames = (frames / 2 / geometry.time).max(1) * geometry.time + 1;
        all.push(Extent { frames, ..clip });
    }
    for frames in [clip.frames, clip.frames.min(FEW_FRAMES)] {
        let (mut width, mut height) = (clip.width, clip.height);
        for _ in 0..MOST_SIZES {
            let less = |side: usize| (side * 3 / 4 / geometry.space).max(1) * geometry.space;
            (width, height) = (less(width), less(height));
            all.push(Extent { width, height, frames });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_rounded_up() {
        assert_eq!(rounded_up(1), "1MiB");
        assert_eq!(rounded_up(4_500_000_000), "4.2GiB");
        assert!(crate::platform::machine::parse_size(&rounded_up(4_500_000_000)).unwrap() >= 4_500_000_000);
    }

    #[test]
    fn no_memory_is_offered_that_the_machine_lacks() {
        let flag = Some("--memory 8.0GiB, with which all stages fit".to_string());
        assert_eq!((more_memory(8 << 30, Some(8 << 30)), more_memory(8 << 30, None)), (flag.clone(), flag));
        assert_eq!(more_memory((8 << 30) + 1, Some(8 << 30)), None);
    }

    #[test]
    fn tiles_are_whole_latents() {
        let of = |tiles, overlap| tiling(tiles, overlap, 32);
        assert_eq!(of(Tiles::Auto, None).unwrap(), None);
        let tile = of(Tiles::Of(512, 256), None).unwrap();
        assert_eq!(tile, Some(Tiling { height: 8, width: 16, overlap: 2 }));
        assert!(of(Tiles::Of(500, 256), None).unwrap_err().to_string().contains("--vae-tile 512x256"));
        assert!(of(Tiles::Of(512, 256), Some(256)).is_err());
        assert_eq!(of(Tiles::Of(32, 32), None).unwrap().map(|t| t.overlap), Some(0));
    }

    /// The footage of a join is part of the clip and no part of what `--frames` asks for.
    #[test]
    fn flags_ask_for_what_is_new() {
        let task = |width: usize, frames: usize| {
            let clip = Extent { width, height: 320, frames };
            let (windows, prompts, held) = (vec![], vec![], vec![9]);
            let (canvases, scenes) = (vec![clip], vec![1]);
            Task { clip, legal: clip, canvases, windows, scenes, prompts, held, pictures: 0, enlarging: 0, context: 9 }
        };
        let before = task(512, 49);
        assert_eq!(task(512, 25).flags_from(&before), "--frames 16");
        assert_eq!(task(256, 49).flags_from(&before), "--size 256x320");
        assert_eq!(task(256, 25).flags_from(&before), "--size 256x320 --frames 16");
    }
}
