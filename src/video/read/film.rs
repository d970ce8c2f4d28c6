//! Films: H.264 in MP4 and MOV by our own decoder, all else through `ffmpeg`, and what to say where there is none.

use super::ffmpeg::{Piped, probe};
use super::mp4::Track;
use super::{Clip, Reader, Remarks, mp4, sniff};
use anyhow::{Result, anyhow, ensure};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const CONVERT: &str = "install `ffmpeg`, or convert it: `ffmpeg -i IN -c:v libx264 -crf 10 -pix_fmt yuv420p OUT.mp4`";

/// An error that names what is not decoded and the command that helps.
pub fn convert(what: &str) -> anyhow::Error {
    anyhow!("{what} is not decoded here, and there is no `ffmpeg`\n  fix: {CONVERT}")
}

/// An error of our decoder in the middle of a film, where nothing can take over.
pub fn gave_up(error: &anyhow::Error) -> anyhow::Error {
    anyhow!("{error:#}, and there is no `ffmpeg` to go on with\n  fix: copy or make it again, or {CONVERT}")
}

pub fn mp4(path: &Path) -> Result<Reader> {
    let mut file = File::open(path)?;
    let track = mp4::read(path, &mut file)?;
    mp4::check_open(&track.entries)?;
    ensure!(!track.shown.is_empty(), "there are no frames in it");
    let codec = mp4::codec(track.entries[0].format);
    let index = track.index;
    match ours(path, file, track) {
        Ok(reader) => Ok(reader),
        // The damage that our decoder finds, and what it was not made for, look alike.
        Err(error) => {
            let what = if format!("{error:#}") == codec { codec } else { format!("{codec} ({error:#})") };
            match through_ffmpeg(path, index, false) {
                Ok(Some(mut reader)) => {
                    reader.notes.insert(0, format!("{what} is read with `ffmpeg`"));
                    Ok(reader)
                }
                Ok(None) => Err(convert(&what)),
                Err(other) => Err(anyhow!("{error:#}; {other:#}")),
            }
        }
    }
}

#[cfg(feature = "h264")]
fn ours(path: &Path, mut file: File, track: Track) -> Result<Reader> {
    use anyhow::bail;
    if let Some(entry) = track.entries.iter().find(|entry| !matches!(&entry.format, b"avc1" | b"avc3")) {
        bail!("{}", mp4::codec(entry.format));
    }
    ensure!(!track.edited, "its edit list shows frames again or holds them");
    let starts: Vec<f64> = track.shown.iter().map(|&(_, start)| start).collect();
    let (end, sound, index) = (track.end, track.sound, track.index);
    let tick = 1.0 / f64::from(track.timescale);
    let (orientation, slanted) = (track.orientation, track.slanted);
    let shape = track.entries.iter().find_map(|entry| entry.shape);
    let damaged = track.damaged(&mut file)?;
    let source = super::h264::H264::open(file, track)?;
    let shape = shape.or(source.shape()).map(|shape| if super::lies(orientation) { shape.turned() } else { shape });
    let remarks = Remarks { shape, hdr: source.hdr(), ..Remarks::default() };
    let (width, height) = source.size();
    super::check_size(width, height)?;
    let (width, height) = if super::lies(orientation) { (height, width) } else { (width, height) };
    let clip = Clip {
        source: Box::new(source),
        width,
        height,
        still: false,
        starts,
        end: Some(end).filter(|&end| end > 0.0),
        tick,
        codec: "H.264".to_string(),
        sound,
        path: PathBuf::from(path),
    };
    let mut reader = Reader::new(clip, remarks);
    reader.spare = Some(index);
    if let Some((first, rest)) = damaged.split_first() {
        let which = match rest.len() {
            0 => format!("its frame {first} is damaged"),
            more => format!("{} of its frames are damaged, the first of them {first}", more + 1),
        };
        reader
            .notes
            .push(format!("{which}: the data are not what was written, and pictures from there on may look wrong"));
    }
    if slanted {
        reader.notes.push("its turn by less than a quarter is not followed".to_string());
    }
    Ok(reader)
}

#[cfg(not(feature = "h264"))]
fn ours(_: &Path, _: File, track: Track) -> Result<Reader> {
    Err(anyhow!("{}", mp4::codec(track.entries[0].format)))
}

/// A film in a container that is not read here.
pub fn foreign(path: &Path, container: &str) -> Result<Reader> {
    let Some(mut reader) = through_ffmpeg(path, 0, false)? else {
        let mut head = Vec::new();
        File::open(path)?.take(sniff::HEAD as u64).read_to_end(&mut head)?;
        let codec = sniff::codec(&head);
        return Err(convert(&match codec {
            Some(codec) => format!("{codec} in {container}"),
            None => container.to_string(),
        }));
    };
    reader.notes.insert(0, format!("{} in {container} is read with `ffmpeg`", reader.info.codec));
    Ok(reader)
}

/// A still of a kind that is not read here. (Some of these can move; then it is a film.)
pub fn picture(path: &Path, kind: &str) -> Result<Reader> {
    let fix = "convert it: `ffmpeg -i IN OUT.png`";
    match through_ffmpeg(path, 0, true) {
        Ok(Some(mut reader)) => {
            reader.notes.insert(0, format!("{kind} is read with `ffmpeg`"));
            Ok(reader)
        }
        Ok(None) => {
            Err(anyhow!("{kind} is not decoded here, and there is no `ffmpeg`\n  fix: install `ffmpeg`, or {fix}"))
        }
        Err(error) => Err(anyhow!("it is {kind}, and {error:#}\n  fix: save it as PNG or JPEG, or {fix}")),
    }
}

/// None where there is no `ffmpeg`.
/// - `picture`: one frame is a still.
fn through_ffmpeg(path: &Path, video: usize, picture: bool) -> Result<Option<Reader>> {
    let Some(probe) = probe(path, video)? else { return Ok(None) };
    ensure!(!(picture && probe.about.tiled), "its picture is stored in tiles, which `ffmpeg` gives one by one");
    let source = Box::new(Piped::new(path, video, &probe, 0));
    let about = probe.about;
    let remarks = Remarks { shape: about.shape, hdr: about.hdr, ..Remarks::default() };
    let clip = Clip {
        source,
        width: probe.width,
        height: probe.height,
        still: picture && probe.starts.len() == 1,
        starts: probe.starts,
        end: probe.end,
        tick: probe.tick,
        codec: about.codec,
        sound: about.sound,
        path: PathBuf::from(path),
    };
    let mut reader = Reader::new(clip, remarks);
    if about.interlaced {
        reader.notes.push("it is interlaced; `ffmpeg` deinterlaces it (bwdif)".to_string());
    }
    if let Some(complaint) = probe.complaint {
        reader.notes.push(format!("it may be damaged; `ffmpeg` says: {complaint}"));
    }
    Ok(Some(reader))
}

/// A pipe that goes on at frame `at` of a file; none where there is no `ffmpeg`.
/// - `width`, `height`, `frames`: of the file as it was opened.
/// - Errors when `ffmpeg` sees another number of frames or another size.
pub fn take_over(
    path: &Path,
    video: usize,
    (width, height, frames): (usize, usize, usize),
    at: usize,
    why: &anyhow::Error,
) -> Result<Option<Piped>> {
    let Some(probe) = probe(path, video)? else { return Ok(None) };
    let found = (probe.width, probe.height, probe.starts.len());
    let same = found == (width, height, frames);
    ensure!(same, "{why:#}; `ffmpeg` finds {} frames of {}x{}", found.2, found.0, found.1);
    Ok(Some(Piped::new(path, video, &probe, at)))
}
