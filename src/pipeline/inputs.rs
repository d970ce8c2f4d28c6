//! The stills and clips that a request names: found, checked and brought to the model's size before any weights load.

use crate::job::geometry::{Extent, Geometry};
use crate::job::recipe::Recipe;
use crate::job::request::Request;
use crate::models::defaults::Holds;
use crate::planning::forecast::HeldSpan;
use crate::planning::settings::Settings;
use crate::platform::progress::Progress;
use crate::video::Frame;
use crate::video::read::{self, Reader};
use crate::video::resize::{Fit, bilinear_frame, cropped, degrade, fit};
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::path::Path;

/// Pictures to hold from a frame on.
pub struct Held {
    pub frame: usize,
    pub strength: f64,
    /// 1 + k frames, of the model's size or one that the encoder brings to it.
    pub frames: Vec<Frame>,
}

/// Where what is held stands.
pub fn places(held: &[Held]) -> Vec<HeldSpan> {
    let bytes = |held: &Held| held.frames.iter().map(|frame| frame.rgb.len()).sum();
    held.iter().map(|h| HeldSpan { frame: h.frame, count: h.frames.len(), bytes: Some(bytes(h)) }).collect()
}

/// How pictures are made ready for the encoder.
#[derive(Clone, Copy, Debug)]
pub struct Preparation {
    /// Width and height of the clip as asked for; pictures are fitted to it.
    pub clip: (usize, usize),
    /// The same in whole latents; pictures are continued to its rims.
    pub legal: (usize, usize),
    /// The largest size that some pass is made at.
    pub largest: (usize, usize),
    pub fit: Fit,
    /// Blur and compression, 0 for none.
    pub crf: u8,
    pub recipe: Recipe,
    /// Whether a clip that begins between two latent frames is moved to the earlier one. Diffusers holds its first two latent
    /// frames where it was put and the others up to 7 frames earlier.
    pub moved: bool,
}

impl Preparation {
    /// Returns how a run's pictures are made ready.
    /// - `legal`: the clip in whole latents. `canvases`: of each pass. `known`: the catalogue has an entry for the model.
    pub fn of(settings: &Settings, request: &Request, legal: Extent, canvases: &[Extent], known: bool) -> Self {
        let size = |extent: Extent| (extent.width, extent.height);
        Self {
            clip: size(settings.clip),
            legal: size(legal),
            largest: size(canvases.last().copied().unwrap_or(legal)),
            fit: request.fit,
            crf: settings.image_crf,
            recipe: settings.recipe,
            moved: known && request.convention.is_none(),
        }
    }

    /// Whether a picture of the model's size is the same before and after.
    pub fn changes_nothing(&self) -> bool {
        self.crf == 0 && self.clip == self.legal && !self.recipe.resizes_last()
    }

    /// Returns a picture as the encoder takes it.
    /// - `still`: there is one picture alone; frames of clips that are larger than every pass are brought to the largest.
    /// - Where the recipe resizes last it keeps its own size: the encoder brings it to each pass's.
    pub fn prepare(&self, frame: &Frame, still: bool) -> Result<Frame> {
        let (width, height) = self.clip;
        let Some(own) = self.at_its_own_size(frame) else {
            let fitted = degrade(&fit(frame, width, height, self.fit), self.crf)?;
            return Ok(to_rims(&fitted, self.legal.0, self.legal.1));
        };
        let ready = degrade(&own, self.crf)?;
        if self.legal != self.clip {
            return Ok(to_rims(&bilinear_frame(&ready, width, height), self.legal.0, self.legal.1));
        }
        let (width, height) = self.largest;
        let larger = ready.width * ready.height > width * height;
        Ok(if larger && !still { bilinear_frame(&ready, width, height) } else { ready })
    }

    /// The part of a picture that is degraded before it is resized; `None` where it is resized first: in the other recipe,
    /// between borders, which the script does not know, and of pictures too thin to be compressed.
    fn at_its_own_size<'a>(&self, frame: &'a Frame) -> Option<Cow<'a, Frame>> {
        let own = match self.fit {
            _ if !self.recipe.resizes_last() => return None,
            Fit::Crop => cropped(frame, self.clip.0, self.clip.1),
            Fit::Stretch => Cow::Borrowed(frame),
            Fit::Pad => return None,
        };
        (own.width > 1 && own.height > 1).then_some(own)
    }
}

/// Opens a still or a clip.
/// - `flag`: what it was given as, for errors.
pub fn open(path: &Path, flag: &str, progress: &Progress) -> Result<Reader> {
    let mut reader = read::open(path).with_context(|| flag.to_string())?;
    tell(&mut reader, path, progress);
    Ok(reader)
}

/// Says what there is to remark of a file and was not said yet.
pub fn tell(reader: &mut Reader, path: &Path, progress: &Progress) {
    reader.news().iter().for_each(|note| progress.note(&format!("`{}`: {note}", path.display())));
}

/// Width and height for a video that begins from pictures of another shape: about as many pixels as `default`, in the
/// pictures' aspect, in whole latents. Another aspect weighs twice as much as another number of pixels.
pub fn size_in_aspect(width: usize, height: usize, default: (usize, usize), geometry: Geometry) -> (usize, usize) {
    let area = (default.0 * default.1) as f64;
    let aspect = width as f64 / height as f64;
    let around = |side: f64| {
        let latents = side / geometry.space as f64;
        [latents.floor(), latents.ceil()].map(|n| n.max(1.0) as usize * geometry.space)
    };
    let (wide, high) = (around((area * aspect).sqrt()), around((area / aspect).sqrt()));
    let all = wide.iter().flat_map(|&w| high.iter().map(move |&h| (w, h)));
    let off = |&(w, h): &(usize, usize)| {
        let (w, h) = (w as f64, h as f64);
        2.0 * (w / h / aspect).ln().abs() + (w * h / area).ln().abs()
    };
    all.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(default)
}

/// The size that the request's first still gives, where it asks for none.
pub fn size_from_stills(
    request: &Request,
    default: (usize, usize),
    geometry: Geometry,
) -> Result<Option<(usize, usize)>> {
    let first = request.image.as_deref().map(|file| (file, "--image"));
    let first = first.or(request.keyframe.first().map(|k| (k.file.as_path(), "--keyframe")));
    let first = first.or(request.last_image.as_deref().map(|file| (file, "--last-image")));
    let (Some((path, flag)), None) = (first, request.size) else { return Ok(None) };
    let (width, height) = read::size(path).with_context(|| flag.to_string())?;
    Ok(Some(size_in_aspect(width, height, default, geometry)))
}

/// Reads what the request wants held: `--image`, `--keyframe` as given, `--last-image`.
/// - `legal`: the video's size as the model makes it.
/// - Errors on a frame outside the clip, on two pictures for one frame, and on what the convention cannot hold.
pub fn held(
    request: &Request,
    settings: &Settings,
    legal: Extent,
    preparation: &Preparation,
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
        let mut index = index as usize;
        let mut clip = open(path, flag, progress)?.steady();
        let have = if still { 1 } else { clip.info().frames };
        let room = |index: usize| (have.min(legal.frames - index) - 1) / geometry.time * geometry.time + 1;
        if let Some((to, line)) =
            aligned(index, room(index), preparation, geometry, settings.family.prefix_latent_frames())
        {
            progress.note(&format!("{flag} `{name}`: {line}"));
            index = to;
        }
        let fits = room(index);
        if have > 1 && fits < have {
            progress.note(&format!("{flag} `{name}`: {fits} of its {have} frames are held"));
        }
        if settings.family.holds(settings.convention) == Holds::FirstFrame {
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
            progress.check_cancelled()?;
            let Some(frame) = clip.next_frame().with_context(|| format!("{flag}: `{name}` cannot be read"))? else {
                break;
            };
            frames.push(preparation.prepare(&frame, fits == 1)?);
        }
        tell(&mut clip.reader, path, progress);
        ensure!(frames.len() == fits, "{flag}: `{name}` has {} frames where {have} were announced", frames.len());
        all.push(Held { frame: index, strength, frames });
    }
    Ok(all)
}

/// Where a clip of `count` frames that was put at `frame` is held, and what is to be said of that; `None` where it stays and
/// nothing is to be said.
/// - `prefix`: of [`Family::prefix_latent_frames`](crate::models::Family::prefix_latent_frames).
fn aligned(
    frame: usize,
    count: usize,
    preparation: &Preparation,
    geometry: Geometry,
    prefix: usize,
) -> Option<(usize, String)> {
    let time = geometry.time;
    let before = frame / time * time;
    // beside the video each frame has its own time; only what lies among the video's latent frames needs a multiple
    let beside = count <= 1 + prefix.saturating_sub(1) * time;
    if count == 1 || before == frame || beside && !preparation.recipe.holds_clips_at_multiples() {
        return None;
    }
    if preparation.moved {
        return Some((before, format!("held from frame {before} on, not {frame}: clips begin at multiples of {time}")));
    }
    let rest = before + prefix * time;
    Some((
        frame,
        format!(
            "its start is held from frame {frame} on and the rest, from frame {rest} on, {} frames early, as in diffusers: clips begin at multiples of {time}",
            frame - before
        ),
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { time: 8, space: 32 };

    fn preparation(recipe: Recipe, moved: bool) -> Preparation {
        let (clip, largest) = ((64, 32), (96, 64));
        Preparation { clip, legal: clip, largest, fit: Fit::Crop, crf: 0, recipe, moved }
    }

    #[test]
    fn a_size_is_first_of_the_right_shape_and_then_of_the_right_area() {
        let size = |width, height, space| {
            size_in_aspect(width, height, if space == 16 { (64, 64) } else { (1216, 704) }, Geometry { time: 4, space })
        };
        assert_eq!([size(640, 480, 16), size(1920, 1080, 16), size(64, 64, 16)], [(64, 48), (80, 48), (64, 64)]);
        assert_eq!([size(1080, 1920, 32), size(1920, 1080, 32)], [(704, 1248), (1248, 704)]);
        assert_eq!(size(10_000, 1, 16).1, 16);
    }

    #[test]
    fn clips_begin_at_latent_frames() {
        let place = |recipe, moved, frame, count| {
            aligned(frame, count, &preparation(recipe, moved), GEOMETRY, 2)
                .map(|(to, line)| (to, line.contains("multiples of 8")))
        };
        for (frame, count) in [(12, 1), (16, 9), (0, 25), (16, 25)] {
            assert_eq!(place(Recipe::Lightricks, true, frame, count), None, "{frame} {count}");
            assert_eq!(place(Recipe::Diffusers, true, frame, count), None, "{frame} {count}");
        }
        assert_eq!(place(Recipe::Lightricks, true, 12, 9), Some((8, true)));
        assert_eq!(place(Recipe::Diffusers, true, 12, 9), None, "beside the video it has its own time");
        assert_eq!(place(Recipe::Diffusers, true, 7, 17), Some((0, true)));
        assert_eq!(place(Recipe::Diffusers, false, 12, 17), Some((12, true)), "as in diffusers, with a line");
    }

    /// A picture with a value of its own at every pixel.
    fn ramp(width: usize, height: usize) -> Frame {
        Frame { width, height, rgb: (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect() }
    }

    #[test]
    fn what_resizes_last_keeps_its_own_size() {
        let sizes = |recipe, still, frame: Frame| {
            let frame = preparation(recipe, true).prepare(&frame, still).unwrap();
            (frame.width, frame.height)
        };
        assert_eq!(sizes(Recipe::Diffusers, true, ramp(200, 120)), (64, 32));
        assert_eq!(sizes(Recipe::Lightricks, true, ramp(200, 120)), (200, 100), "a still, cropped to the aspect");
        assert_eq!(
            sizes(Recipe::Lightricks, false, ramp(200, 120)),
            (96, 64),
            "a clip, no larger than the largest pass"
        );
        assert_eq!(sizes(Recipe::Lightricks, false, ramp(48, 24)), (48, 24));
        assert_eq!(sizes(Recipe::Lightricks, true, ramp(1, 200)), (64, 32), "too thin to be compressed");
        #[cfg(feature = "h264")]
        {
            let degraded = Preparation { crf: 29, ..preparation(Recipe::Lightricks, true) };
            let want = degrade(&cropped(&ramp(200, 120), 64, 32), 29).unwrap();
            assert!(degraded.prepare(&ramp(200, 120), true).unwrap() == want, "degraded before it is resized");
        }
        let padded = Preparation { fit: Fit::Pad, ..preparation(Recipe::Lightricks, true) };
        assert_eq!(padded.prepare(&ramp(200, 200), true).unwrap().width, 64, "borders are those of the clip");
        let odd = Preparation { clip: (60, 30), ..preparation(Recipe::Lightricks, true) };
        let framed = odd.prepare(&ramp(200, 100), true).unwrap();
        assert_eq!((framed.width, framed.height), (64, 32));
        assert_eq!(framed.rgb[..3], framed.rgb[2 * 3..3 * 3], "continued by its outermost pixels");
    }
}
