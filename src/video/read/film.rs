//! Films: H.264 in MP4 and MOV by our own decoder, all else through `ffmpeg`, and what to say where there is none.

use super::ffmpeg::{Piped, probe};
use super::mp4::Track;
use super::{Clip, Info, Reader, Remarks, ffmpeg, mp4};
use anyhow::{Result, anyhow, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};

const CONVERT: &str = "install `ffmpeg`, or convert it: `ffmpeg -i IN -c:v libx264 -crf 10 -pix_fmt yuv420p OUT.mp4`";

/// An error that names what is not decoded and the command that helps.
pub fn convert(what: &str) -> anyhow::Error {
    anyhow!("{what} is not decoded here, and there is no `ffmpeg`\n  fix: {CONVERT}")
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
            match through_ffmpeg(path, index) {
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
fn ours(path: &Path, file: File, track: Track) -> Result<Reader> {
    use anyhow::bail;
    if let Some(entry) = track.entries.iter().find(|entry| !matches!(&entry.format, b"avc1" | b"avc3")) {
        bail!("{}", mp4::codec(entry.format));
    }
    ensure!(!track.edited, "its edit list shows frames again or holds them");
    let starts: Vec<f64> = track.shown.iter().map(|&(_, start)| start).collect();
    let (end, sound, index) = (track.end, track.sound, track.index);
    let tick = 1.0 / f64::from(track.timescale);
    let (orientation, slanted) = (track.orientation, track.slanted);
    let anamorphic = track.entries.iter().any(|entry| entry.anamorphic);
    let source = super::h264::H264::open(file, track)?;
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
    let mut reader = Reader::new(clip, Remarks::default());
    reader.spare = Some(index);
    if slanted {
        reader.notes.push("its turn by less than a quarter is not followed".to_string());
    }
    if anamorphic {
        reader.notes.push("its pixels are not square; they are read as if they were".to_string());
    }
    Ok(reader)
}

#[cfg(not(feature = "h264"))]
fn ours(_: &Path, _: File, track: Track) -> Result<Reader> {
    Err(anyhow!("{}", mp4::codec(track.entries[0].format)))
}

/// A film in a container that is not read here.
pub fn foreign(path: &Path, container: &str, codec: Option<String>) -> Result<Reader> {
    let Some(mut reader) = through_ffmpeg(path, 0)? else {
        return Err(convert(&match codec {
            Some(codec) => format!("{codec} in {container}"),
            None => container.to_string(),
        }));
    };
    reader.notes.insert(0, format!("{} in {container} is read with `ffmpeg`", reader.info.codec));
    Ok(reader)
}

/// None where there is no `ffmpeg`.
fn through_ffmpeg(path: &Path, video: usize) -> Result<Option<Reader>> {
    let Some(probe) = probe(path, video)? else { return Ok(None) };
    let size = (probe.width, probe.height);
    let clip = Clip {
        source: Box::new(Piped::new(path, video, probe.passthrough, size, probe.starts.len(), 0)),
        width: probe.width,
        height: probe.height,
        still: false,
        starts: probe.starts,
        end: probe.end,
        tick: probe.tick,
        codec: probe.codec,
        sound: probe.sound,
        path: PathBuf::from(path),
    };
    let mut reader = Reader::new(clip, Remarks::default());
    if probe.hdr {
        reader.notes.push("it is HDR; its colours are not mapped and look flat".to_string());
    }
    if let Some(complaint) = probe.complaint {
        reader.notes.push(format!("it may be damaged; `ffmpeg` says: {complaint}"));
    }
    Ok(Some(reader))
}

/// A pipe that goes on at frame `at` of a file that was opened as `info`; none where there is no `ffmpeg`.
/// - Errors when `ffmpeg` sees another number of frames or another size.
pub fn take_over(path: &Path, video: usize, info: &Info, at: usize, why: &anyhow::Error) -> Result<Option<Piped>> {
    let Some(ffmpeg::Probe { width, height, starts, passthrough, .. }) = probe(path, video)? else { return Ok(None) };
    let same = (width, height, starts.len()) == (info.width, info.height, info.frames);
    ensure!(same, "{why:#}; `ffmpeg` finds {} frames of {width}x{height}", starts.len());
    Ok(Some(Piped::new(path, video, passthrough, (width, height), starts.len(), at)))
}
