//! Stills and clips from files: `open` looks at what a file is and checks it, `Reader` gives its frames in the order of
//! showing, decoded one at a time.
//!
//! Read here: PNG, JPEG, BMP, WebP and GIF (still or moving), APNG, Y4M, folders of frames, and H.264 in MP4 and MOV. Other
//! films go through the user's `ffmpeg`, where there is one. An error says what, where and the fix.

use crate::video::Frame;
use crate::video::resize::lanczos;
use anyhow::{Context, Result, anyhow, ensure};
use guard::guarded;
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, Limits, RgbImage};
use shape::Shape;
use sniff::Kind;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

mod animation;
mod boxes;
mod ffmpeg;
mod film;
mod folder;
mod guard;
#[cfg(feature = "h264")]
mod h264;
mod jpeg;
mod mp4;
mod samples;
mod shape;
mod sniff;
#[cfg(feature = "h264")]
pub(in crate::video) mod sps;
mod steady;
mod still;
mod talk;
#[cfg(test)]
mod testing;
mod timing;
mod y4m;
pub(in crate::video) mod yuv;

#[cfg(feature = "h264")]
pub(in crate::video) use mp4::{Entry, SUMS, Track};
pub use steady::Steady;

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// As shown, turned upright, in square pixels.
    pub width: usize,
    pub height: usize,
    /// Exactly as many as `Steady` gives; the file's own frames where their rate does not vary.
    pub frames: usize,
    /// None for stills and folders. Where it varies, the rate that shows every picture: see `Steady`.
    pub fps: Option<f64>,
    /// How long it is shown; none for stills and folders.
    pub seconds: Option<f64>,
    /// What it is coded with, as people call it.
    pub codec: String,
    /// There is a sound track, which is not read.
    pub sound: bool,
    pub variable_rate: bool,
    /// One picture that does not move, whatever its file.
    pub still: bool,
}

/// A frame and when it is shown, in seconds from the first (0 where there is no rate).
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    pub frame: Frame,
    pub start: f64,
}

/// A still or a clip, opened and checked.
pub struct Reader {
    pub info: Info,
    /// One-line remarks for the user. They may grow while frames are read.
    /// See `news`.
    pub notes: Vec<String>,
    path: PathBuf,
    source: Box<dyn Source>,
    /// Width and height as the source gives them: other than in `info` where pixels are not square.
    stored: (usize, usize),
    starts: Vec<f64>,
    /// The next frame.
    at: usize,
    /// The picture stream that `ffmpeg` can take over when our decoder gives up.
    spare: Option<usize>,
    /// Remarks that were asked for.
    told: usize,
}

/// Frames one after another; all end with none.
trait Source {
    fn next(&mut self) -> Result<Option<Frame>>;
    /// The next frame will be this one, which is not before the next one as it stands.
    fn skip_to(&mut self, frame: usize) -> Result<()>;
    /// The file that holds a frame by itself.
    fn file(&self, _frame: usize) -> Option<&Path> {
        None
    }
}

/// What the kinds of files have in common once they are opened.
struct Clip {
    source: Box<dyn Source>,
    width: usize,
    height: usize,
    still: bool,
    /// Seconds; the first is 0.
    starts: Vec<f64>,
    end: Option<f64>,
    /// The file's clock, in seconds.
    tick: f64,
    codec: String,
    sound: bool,
    path: PathBuf,
}

/// What was left out or done to pictures, to be said once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remarks {
    alpha: bool,
    on_white: bool,
    turned: bool,
    deep: bool,
    shape: Option<Shape>,
    hdr: bool,
}

/// Pixels on a side and in all: beyond 8K film and medium-format photos. A file can claim any size.
const LONGEST_SIDE: usize = 16_384;
const MOST_PIXELS: usize = 1 << 27;

fn check_size(width: usize, height: usize) -> Result<()> {
    ensure!(width > 0 && height > 0, "it is {width}x{height} pixels, which is nothing to see");
    let fits = width <= LONGEST_SIDE && height <= LONGEST_SIDE && width * height <= MOST_PIXELS;
    ensure!(fits, "it claims {width}x{height} pixels\n  fix: at most {LONGEST_SIDE} a side and {MOST_PIXELS} in all");
    Ok(())
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_SIDE as u32);
    limits.max_image_height = Some(LONGEST_SIDE as u32);
    limits.max_alloc = Some(64 << 20); // of what is beside the pixels: colour profiles, texts
    limits
}

/// Whether the turn makes width of height.
fn lies(orientation: Orientation) -> bool {
    use Orientation::*;
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn turned(frame: Frame, orientation: Orientation) -> Frame {
    if orientation == Orientation::NoTransforms {
        return frame;
    }
    let Frame { width, height, rgb } = frame;
    let Some(image) = RgbImage::from_raw(width as u32, height as u32, rgb) else {
        unreachable!("a frame holds width * height * 3 bytes")
    };
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    Frame { width, height, rgb: image.into_rgb8().into_raw() }
}

const READ: &str =
    "give a PNG, JPEG, WebP, BMP or GIF picture, an MP4, MOV, GIF, WebP, APNG or Y4M clip, or a folder of frames";

/// Puts the file's name in front and a way out behind, where they are missing.
fn named(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let name = path.display().to_string();
    let text = format!("{error:#}");
    let (what, fix) = text.split_once("\n  fix: ").unwrap_or((&text, "copy or make it again"));
    let what = what.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let place = if what.contains(&name) { String::new() } else { format!("cannot read `{name}`: ") };
    anyhow!("{place}{what}\n  fix: {fix}")
}

/// Why a path leads to nothing, and what helps.
fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let name = path.display();
    let text = name.to_string();
    let fix = match error.kind() {
        _ if text.split_once("://").is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric())) => {
            "download it first: URLs are not fetched"
        }
        ErrorKind::PermissionDenied => "check its permissions",
        _ => "check the path",
    };
    anyhow!("cannot read `{name}`: {error}\n  fix: {fix}")
}

/// Text out of a file, cut to what an error has room for.
fn short(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// Opens a still, a clip or a folder of frames, and checks all that can be checked without decoding it whole (small GIF, WebP
/// and APNG files are decoded once).
/// - Errors when it is missing, is not pictures, is cut short or damaged, or needs a decoder that is not there.
pub fn open(path: &Path) -> Result<Reader> {
    guarded(|| open_unnamed(path)).map_err(|error| named(path, error))
}

/// Width and height as shown; of a still from its header alone, of a GIF without decoding it.
pub fn size(path: &Path) -> Result<(usize, usize)> {
    let still = |format| guarded(|| still::size(path, format)).map_err(|error| named(path, error));
    match kind(path).map_err(|error| named(path, error))? {
        Some(Kind::Png) => still(ImageFormat::Png),
        Some(Kind::Jpeg) => still(ImageFormat::Jpeg),
        Some(Kind::Webp) => still(ImageFormat::WebP),
        Some(Kind::Bmp) => still(ImageFormat::Bmp),
        Some(Kind::Gif) => {
            let size = guarded(|| animation::size(path, ImageFormat::Gif)?.context("there are no frames in it"));
            size.map_err(|error| named(path, error))
        }
        _ => open(path).map(|reader| (reader.info.width, reader.info.height)),
    }
}

/// What a file is; none for a folder.
/// - Errors when it is missing, empty or no ordinary file.
fn kind(path: &Path) -> Result<Option<Kind>> {
    let about = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if about.is_dir() {
        return Ok(None);
    }
    ensure!(about.is_file(), "it is no ordinary file\n  fix: {READ}");
    ensure!(about.len() > 0, "it is empty\n  fix: copy or make it again");
    let mut head = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(sniff::HEAD as u64).read_to_end(&mut head)?;
    Ok(Some(sniff::kind(&head)))
}

fn open_unnamed(path: &Path) -> Result<Reader> {
    let mut remarks = Remarks::default();
    let Some(kind) = kind(path)? else {
        return Ok(Reader::new(folder::open(path, &mut remarks)?, remarks));
    };
    let picture = |format, remarks: &mut Remarks| -> Result<Clip> {
        if let Some(clip) = animation::open(path, format, remarks)? {
            return Ok(clip);
        }
        let frame = still::read(path, format, remarks)?;
        Ok(Clip::still(path, frame, format))
    };
    let clip = match kind {
        Kind::Png => picture(ImageFormat::Png, &mut remarks)?,
        Kind::Jpeg => picture(ImageFormat::Jpeg, &mut remarks)?,
        Kind::Gif => picture(ImageFormat::Gif, &mut remarks)?,
        Kind::Webp => picture(ImageFormat::WebP, &mut remarks)?,
        Kind::Bmp => picture(ImageFormat::Bmp, &mut remarks)?,
        Kind::Y4m => y4m::open(path, &mut remarks)?,
        Kind::Mp4 => return film::mp4(path),
        Kind::Foreign(container) => return film::foreign(path, container),
        Kind::Picture(kind) => return film::picture(path, kind),
        Kind::Other(kind) => anyhow::bail!("it is {kind}\n  fix: {READ}"),
        Kind::Unknown => anyhow::bail!("it is neither a picture nor a video\n  fix: {READ}"),
    };
    Ok(Reader::new(clip, remarks))
}

/// A still that is already in memory.
struct One(Option<Frame>);

impl Source for One {
    fn next(&mut self) -> Result<Option<Frame>> {
        Ok(self.0.take())
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        self.0.take_if(|_| frame > 0);
        Ok(())
    }
}

impl Clip {
    fn still(path: &Path, frame: Frame, format: ImageFormat) -> Clip {
        Clip {
            width: frame.width,
            height: frame.height,
            still: true,
            starts: vec![0.0],
            end: None,
            tick: 0.0,
            codec: format!("{format:?}").to_uppercase(),
            sound: false,
            path: PathBuf::from(path),
            source: Box::new(One(Some(frame))),
        }
    }
}

impl Reader {
    fn new(clip: Clip, remarks: Remarks) -> Reader {
        let pace = if clip.still { None } else { timing::pace(&clip.starts, clip.end, clip.tick) };
        let mut notes = Vec::new();
        let mut note = |said: bool, text: &str| notes.extend(said.then(|| text.to_string()));
        note(remarks.alpha, "its transparency is dropped: what is hidden under it shows");
        note(remarks.on_white, "its transparent parts are shown on white");
        note(remarks.turned, "it is turned upright, as the camera noted");
        note(remarks.deep, "its 16-bit colours are read as 8-bit");
        let stored = (clip.width, clip.height);
        let squared = remarks.shape.map(|shape| (shape, shape.squared(stored.0, stored.1)));
        let squared = squared.filter(|(_, (width, height))| check_size(*width, *height).is_ok());
        let (width, height) = squared.map_or(stored, |(_, size)| size);
        if let Some((shape, _)) = squared {
            let (w, h) = stored;
            note(true, &format!("its pixels are {shape}, not square: {w}x{h} is read as {width}x{height}"));
        }
        note(remarks.hdr, "it is HDR; its colours are not mapped and look flat");
        note(clip.sound, "its sound is not read");
        let last = clip.starts.last().copied().unwrap_or(0.0);
        let end = clip.end.filter(|&end| end > last).or(pace.map(|pace| last + 1.0 / pace.fps));
        let mut frames = clip.starts.len();
        if let (Some(pace), Some(end)) = (pace.filter(|pace| pace.variable), end) {
            let chosen = timing::steady(&clip.starts, end, pace.fps);
            let lost = match timing::left_out(&chosen, frames) {
                0 => String::new(),
                lost => format!("; {lost} of its {frames} pictures are left out"),
            };
            let rate = format!("its frame rate varies; it is read at {:.3} frames a second", pace.fps);
            notes.push(format!("{rate}, pictures that stand longer are repeated{lost}"));
            frames = chosen.len();
        }
        Reader {
            info: Info {
                width,
                height,
                frames,
                fps: pace.map(|pace| pace.fps),
                seconds: pace.and(end),
                codec: clip.codec,
                sound: clip.sound,
                variable_rate: pace.is_some_and(|pace| pace.variable),
                still: clip.still,
            },
            notes,
            path: clip.path,
            source: clip.source,
            stored,
            starts: clip.starts,
            at: 0,
            spare: None,
            told: 0,
        }
    }

    /// The remarks that came since this was last asked.
    pub fn news(&mut self) -> Vec<String> {
        let news = self.notes[self.told.min(self.notes.len())..].to_vec();
        self.told = self.notes.len();
        news
    }

    /// The next frame; none after the last.
    /// - Errors when it cannot be decoded.
    #[allow(clippy::should_implement_trait, reason = "frames come one at a time and may fail, which `?` reads better")]
    pub fn next(&mut self) -> Result<Option<Timed>> {
        let Some(&start) = self.starts.get(self.at) else { return Ok(None) };
        let frame = match guarded(|| self.source.next()) {
            Err(error) => self.hand_over(error).and_then(|()| guarded(|| self.source.next())),
            frame => frame,
        };
        let frame = frame.and_then(|frame| frame.with_context(|| format!("it ends before frame {}", self.at)));
        let frame = frame.map_err(|error| named(&self.path, error))?;
        let (w, h) = self.stored;
        ensure!(
            (frame.width, frame.height) == (w, h),
            "cannot read `{}`: frame {} is {}x{}, the others {w}x{h}\n  fix: make all frames one size",
            self.path.display(),
            self.at,
            frame.width,
            frame.height
        );
        self.at += 1;
        let shown = (self.info.width, self.info.height);
        let frame = if shown == self.stored { frame } else { lanczos(&frame, shown.0, shown.1) };
        Ok(Some(Timed { frame, start }))
    }

    /// Lets `ffmpeg` go on where our decoder gave up.
    fn hand_over(&mut self, error: anyhow::Error) -> Result<()> {
        if error.to_string().contains("\n  fix: ") {
            return Err(error); // `ffmpeg` would not mend it
        }
        let Some(video) = self.spare.take() else { return Err(error) };
        let piped =
            film::take_over(&self.path, video, (self.stored.0, self.stored.1, self.starts.len()), self.at, &error);
        let Some(piped) = piped? else { return Err(film::gave_up(&error)) };
        self.notes.push(format!("{error:#}: read with `ffmpeg` from there on"));
        self.source = Box::new(piped);
        Ok(())
    }

    /// The next frame will be number `frame`, counted from 0; past the last there is none. Nothing before it is kept in
    /// memory: MP4 starts at the nearest frame that stands alone, the rest decode and drop.
    pub fn skip_to(&mut self, frame: usize) -> Result<()> {
        if frame < self.at {
            let again = open(&self.path)?;
            ensure!(again.info == self.info, "`{}` changed while it was read", self.path.display());
            *self = Reader { notes: std::mem::take(&mut self.notes), told: self.told, ..again };
        }
        if let Err(error) = guarded(|| self.source.skip_to(frame)) {
            self.at = frame;
            self.hand_over(error).map_err(|error| named(&self.path, error))?;
        }
        self.at = frame;
        Ok(())
    }

    /// The file that holds a frame by itself, in a folder of frames.
    pub fn file(&self, frame: usize) -> Option<&Path> {
        self.source.file(frame)
    }

    /// The frames at exactly `info.fps`: see `Steady`.
    pub fn steady(self) -> Steady {
        Steady::new(self)
    }
}
