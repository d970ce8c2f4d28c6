//! The stills and clips that a request names: found, checked and brought to the model's size before any weights load.

use crate::geometry::{Extent, Geometry};
use crate::models::ltx::Convention;
use crate::progress::Progress;
use crate::request::{Request, Settings};
use crate::video::Frame;
use crate::video::read::{self, Reader};
use crate::video::resize::{degrade, fit};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Pictures to hold from a frame on.
pub struct Held {
    pub frame: usize,
    pub strength: f64,
    /// 1 + k frames of the model's size.
    pub frames: Vec<Frame>,
}

/// Opens a still or a clip.
/// - `flag`: what it was given as, for errors.
pub fn open(path: &Path, flag: &str, progress: &Progress) -> Result<Reader> {
    let reader = read::open(path).with_context(|| flag.to_string())?;
    reader.notes.iter().for_each(|note| progress.note(&format!("`{}`: {note}", path.display())));
    Ok(reader)
}

/// Width and height for a video that begins from pictures of another shape: about as many pixels as `default`, in the
/// pictures' aspect, in whole latents.
pub fn size_in_aspect(width: usize, height: usize, default: (usize, usize), geometry: Geometry) -> (usize, usize) {
    let area = (default.0 * default.1) as f64;
    let aspect = width as f64 / height as f64;
    let whole = |side: f64| ((side / geometry.space as f64).round().max(1.0) as usize) * geometry.space;
    (whole((area * aspect).sqrt()), whole((area / aspect).sqrt()))
}

/// The size that the request's first still gives, where it asks for none.
pub fn size_from_stills(
    request: &Request,
    default: (usize, usize),
    geometry: Geometry,
    progress: &Progress,
) -> Result<Option<(usize, usize)>> {
    let first = request.image.as_deref().map(|file| (file, "--image"));
    let first = first.or(request.keyframe.first().map(|k| (k.file.as_path(), "--keyframe")));
    let first = first.or(request.last_image.as_deref().map(|file| (file, "--last-image")));
    let (Some((path, flag)), None) = (first, request.size) else { return Ok(None) };
    let silent = Progress { quiet: true, ..*progress };
    let info = open(path, flag, &silent)?.info;
    Ok(Some(size_in_aspect(info.width, info.height, default, geometry)))
}

/// Reads what the request wants held: `--image`, `--keyframe` as given, `--last-image`.
/// - `legal`: the video's size as the model makes it; pictures are fitted to the clip and continued to its rims.
/// - Errors on a frame outside the clip, on two pictures for one frame, and on what the convention cannot hold.
pub fn held(
    request: &Request,
    settings: &Settings,
    legal: Extent,
    geometry: Geometry,
    progress: &Progress,
) -> Result<Vec<Held>> {
    let mut wanted = vec![];
    wanted.extend(request.image.iter().map(|file| (file.as_path(), 0, 1.0, true, "--image")));
    wanted.extend(request.keyframe.iter().map(|k| (k.file.as_path(), k.frame, k.strength, false, "--keyframe")));
    wanted.extend(request.last_image.iter().map(|file| (file.as_path(), -1, 1.0, true, "--last-image")));
    let count = settings.clip.frames;
    let mut all: Vec<Held> = vec![];
    for (path, frame, strength, still, flag) in wanted {
        let name = path.display();
        let index = if frame < 0 { frame + count as i64 } else { frame };
        ensure!(
            (0..count as i64).contains(&index),
            "{flag} `{name}`: frame {frame} is outside the clip\n  fix: 0 to {}, or -{count} to -1 counted from the end",
            count - 1
        );
        let index = index as usize;
        let mut reader = open(path, flag, progress)?;
        let have = if still { 1 } else { reader.info.frames };
        let fits = (have.min(legal.frames - index) - 1) / geometry.time * geometry.time + 1;
        if have > 1 && fits < have {
            progress.note(&format!("{flag} `{name}`: {fits} of its {have} frames are held"));
        }
        if settings.convention == Convention::Text {
            ensure!(
                index == 0 && fits == 1 && strength == 1.0 && all.is_empty(),
                "{flag} `{name}`: this checkpoint can hold one still at frame 0 with strength 1, and nothing else\n  fix: use a model from 0.9.5 on, or the built-in one"
            );
        }
        for other in &all {
            ensure!(
                index + fits <= other.frame || other.frame + other.frames.len() <= index,
                "{flag} `{name}`: frame {} is held by another picture already",
                index.max(other.frame)
            );
        }
        let mut frames = vec![];
        while frames.len() < fits {
            let Some(timed) = reader.next().with_context(|| format!("{flag}: `{name}` cannot be read"))? else { break };
            frames.push(prepare(&timed.frame, request, settings, legal)?);
        }
        ensure!(frames.len() == fits, "{flag}: `{name}` has {} frames where {have} were announced", frames.len());
        all.push(Held { frame: index, strength, frames });
    }
    Ok(all)
}

/// One picture of the model's size.
fn prepare(frame: &Frame, request: &Request, settings: &Settings, legal: Extent) -> Result<Frame> {
    let fitted = fit(frame, settings.clip.width, settings.clip.height, request.fit);
    let fitted = if settings.image_crf > 0 { degrade(&fitted, settings.image_crf)? } else { fitted };
    Ok(to_rims(&fitted, legal.width, legal.height))
}

/// A picture continued by its outermost pixels to a larger size, itself in the centre.
pub fn to_rims(frame: &Frame, width: usize, height: usize) -> Frame {
    if (frame.width, frame.height) == (width, height) {
        return frame.clone();
    }
    let (left, top) = ((width - frame.width.min(width)) / 2, (height - frame.height.min(height)) / 2);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let y = y.saturating_sub(top).min(frame.height - 1);
        for x in 0..width {
            let x = x.saturating_sub(left).min(frame.width - 1);
            let at = (y * frame.width + x) * 3;
            rgb.extend_from_slice(&frame.rgb[at..at + 3]);
        }
    }
    Frame { width, height, rgb }
}
