//! Stills and clips from files: `open` looks at what a file is and checks it, `Reader` gives its frames in the order of
//! showing, decoded one at a time.
//!
//! Read here: PNG, JPEG, WebP and GIF (still or moving), APNG, Y4M, folders of frames, and H.264 in MP4 and MOV. Other
//! films go through the user's `ffmpeg`, where there is one. An error says what, where and the fix.

use crate::video::Frame;
use anyhow::{Context, Result, anyhow, ensure};
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, Limits, RgbImage};
use sniff::Kind;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

mod animation;
mod boxes;
mod ffmpeg;
mod film;
mod folder;
#[cfg(feature = "h264")]
mod h264;
mod mp4;
mod samples;
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
pub(in crate::video) use mp4::{Entry, Track};
pub use steady::Steady;

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// As shown, turned upright.
    pub width: usize,
    pub height: usize,
    /// Exactly as many as will come.
    pub frames: usize,
    /// The mean rate; none for stills and folders.
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
    pub notes: Vec<String>,
    path: PathBuf,
    source: Box<dyn Source>,
    starts: Vec<f64>,
    /// The next frame.
    at: usize,
    /// The picture stream that `ffmpeg` can take over when our decoder gives up.
    spare: Option<usize>,
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
    turned: bool,
    deep: bool,
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
    limits.max_alloc = Some(MOST_PIXELS as u64 * 16);
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
    "give a PNG, JPEG, WebP or GIF picture, an MP4, MOV, GIF, WebP, APNG or Y4M clip, or a folder of frames";

/// Puts the file's name in front and a way out behind, where they are missing.
fn named(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let name = path.display().to_string();
    let text = format!("{error:#}");
    let (what, fix) = text.split_once("\n  fix: ").unwrap_or((&text, "copy or make it again"));
    let what = what.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let place = if what.contains(&name) { String::new() } else { format!("cannot read `{name}`: ") };
    anyhow!("{place}{what}\n  fix: {fix}")
}

/// Opens a still, a clip or a folder of frames, and checks all that can be checked without decoding it whole (GIF, WebP
/// and APNG, which have no index, are decoded once).
/// - Errors when it is missing, is not pictures, is cut short or damaged, or needs a decoder that is not there.
pub fn open(path: &Path) -> Result<Reader> {
    open_unnamed(path).map_err(|error| named(path, error))
}

fn open_unnamed(path: &Path) -> Result<Reader> {
    let name = path.display();
    let about = std::fs::metadata(path).with_context(|| format!("cannot read `{name}`"));
    let about = about.map_err(|error| anyhow!("{error:#}\n  fix: check the path"))?;
    let mut remarks = Remarks::default();
    if about.is_dir() {
        return Ok(Reader::new(folder::open(path, &mut remarks)?, remarks));
    }
    ensure!(about.is_file(), "it is no ordinary file\n  fix: {READ}");
    ensure!(about.len() > 0, "it is empty\n  fix: copy or make it again");
    let mut head = Vec::new();
    File::open(path)?.take(sniff::HEAD as u64).read_to_end(&mut head)?;
    let picture = |format, remarks: &mut Remarks| {
        if animation::moves(path, format)? {
            return animation::open(path, format, remarks);
        }
        let frame = still::read(path, format, remarks)?;
        Ok(Clip::still(path, frame, format))
    };
    let clip = match sniff::kind(&head) {
        Kind::Png => picture(ImageFormat::Png, &mut remarks)?,
        Kind::Jpeg => picture(ImageFormat::Jpeg, &mut remarks)?,
        Kind::Gif => picture(ImageFormat::Gif, &mut remarks)?,
        Kind::Webp => picture(ImageFormat::WebP, &mut remarks)?,
        Kind::Y4m => y4m::open(path)?,
        Kind::Mp4 => return film::mp4(path),
        Kind::Foreign(container) => return film::foreign(path, container, sniff::codec(&head)),
        Kind::Picture(kind) => anyhow::bail!("it is {kind}, which is not read here\n  fix: save it as PNG or JPEG"),
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
        note(remarks.turned, "it is turned upright, as the camera noted");
        note(remarks.deep, "its 16-bit colours are read as 8-bit");
        note(clip.sound, "its sound is not read");
        if let Some(pace) = pace.filter(|pace| pace.variable) {
            notes.push(format!("its frame rate varies; it is read at its mean, {:.3} frames a second", pace.fps));
        }
        let end = clip.end.or(pace.map(|pace| clip.starts.len() as f64 / pace.fps));
        Reader {
            info: Info {
                width: clip.width,
                height: clip.height,
                frames: clip.starts.len(),
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
            starts: clip.starts,
            at: 0,
            spare: None,
        }
    }

    /// The next frame; none after the last.
    /// - Errors when it cannot be decoded.
    #[allow(clippy::should_implement_trait, reason = "frames come one at a time and may fail, which `?` reads better")]
    pub fn next(&mut self) -> Result<Option<Timed>> {
        let Some(&start) = self.starts.get(self.at) else { return Ok(None) };
        let frame = match self.source.next() {
            Err(error) => self.hand_over(error).and_then(|()| self.source.next()),
            frame => frame,
        };
        let frame = frame.and_then(|frame| frame.with_context(|| format!("it ends before frame {}", self.at)));
        let frame = frame.map_err(|error| named(&self.path, error))?;
        let (w, h) = (self.info.width, self.info.height);
        ensure!(
            (frame.width, frame.height) == (w, h),
            "cannot read `{}`: frame {} is {}x{}, the others {w}x{h}\n  fix: make all frames one size",
            self.path.display(),
            self.at,
            frame.width,
            frame.height
        );
        self.at += 1;
        Ok(Some(Timed { frame, start }))
    }

    /// Lets `ffmpeg` go on where our decoder gave up.
    fn hand_over(&mut self, error: anyhow::Error) -> Result<()> {
        let Some(video) = self.spare.take() else { return Err(error) };
        let piped = film::take_over(&self.path, video, &self.info, self.at, &error);
        let Some(piped) = piped? else { return Err(film::convert(&error.to_string())) };
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
            *self = Reader { notes: std::mem::take(&mut self.notes), ..again };
        }
        if let Err(error) = self.source.skip_to(frame) {
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
