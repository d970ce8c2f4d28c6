//! Y4M: raw planes with a line of text before the clip and before each frame.
//! Source: yuv4mpeg(5) of mjpegtools.

use super::shape::Shape;
use super::yuv::{Colour, Planes, untagged};
use super::{Clip, Remarks, Source, short};
use crate::video::Frame;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

pub struct Y4m {
    file: BufReader<File>,
    planes: Planes,
    colour: Colour,
    /// Where each frame's planes begin.
    places: Vec<u64>,
    at: usize,
}

/// A header line longer than this is none.
const LONGEST_LINE: u64 = 4096;

fn line(file: &mut BufReader<File>) -> Result<String> {
    let mut bytes = Vec::new();
    file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    ensure!(bytes.pop() == Some(b'\n'), "its header is cut short");
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Header {
    width: usize,
    height: usize,
    fps: Option<f64>,
    halved: (bool, bool),
    grey: bool,
    full: bool,
    shape: Option<Shape>,
}

fn header(line: &str) -> Result<Header> {
    let mut words = line.split(' ');
    ensure!(words.next() == Some("YUV4MPEG2"), "it has no Y4M header");
    let (mut width, mut height, mut fps) = (0, 0, None);
    let (mut layout, mut full, mut shape) = ("420", false, None);
    for word in words {
        let Some((tag, value)) = word.split_at_checked(1) else { continue };
        match tag {
            "W" => width = value.parse().with_context(|| format!("its header says `{}`", short(word)))?,
            "H" => height = value.parse().with_context(|| format!("its header says `{}`", short(word)))?,
            "F" => {
                fps = value.split_once(':').and_then(|(num, den)| {
                    let (num, den): (u32, u32) = (num.parse().ok()?, den.parse().ok()?);
                    (num > 0 && den > 0).then(|| f64::from(num) / f64::from(den))
                });
            }
            "I" if matches!(value, "t" | "b" | "m") => {
                bail!("it is interlaced\n  fix: `ffmpeg -i IN -vf bwdif -pix_fmt yuv420p OUT.y4m`")
            }
            "C" => layout = value,
            "A" => {
                let pair = value.split_once(':');
                shape = pair.and_then(|(across, down)| Shape::new(across.parse().ok()?, down.parse().ok()?));
            }
            "X" => full |= value == "COLORRANGE=FULL",
            _ => {}
        }
    }
    super::check_size(width, height)?;
    let halved = match layout {
        "420" | "420jpeg" | "420mpeg2" | "420paldv" => (true, true),
        "422" => (true, false),
        "444" | "mono" => (false, false),
        other => bail!("its layout `C{}` is not read\n  fix: `ffmpeg -i IN -pix_fmt yuv420p OUT.y4m`", short(other)),
    };
    Ok(Header { width, height, fps, halved, grey: layout == "mono", full, shape })
}

/// Frames of a clip, however small: a day at 30 frames a second. A frame without pixels takes six bytes.
const MOST_FRAMES: usize = 4_000_000;

/// Finds every frame, by its line; whatever the last one lacks is an error.
pub fn open(path: &Path, remarks: &mut Remarks) -> Result<Clip> {
    let mut file = BufReader::new(File::open(path)?);
    let length = file.get_ref().metadata()?.len();
    let Header { width, height, fps, halved, grey, full, shape } = header(&line(&mut file)?)?;
    let half = |n: usize, halved: bool| if halved { n.div_ceil(2) } else { n };
    let colours = if grey { 0 } else { half(width, halved.0) * half(height, halved.1) };
    let size = (width * height + 2 * colours) as u64;

    let mut places = Vec::new();
    let mut at = file.stream_position()?;
    while at < length {
        let frame = places.len();
        let text = line(&mut file).with_context(|| format!("it ends at frame {frame}"))?;
        ensure!(text == "FRAME" || text.starts_with("FRAME "), "frame {frame} does not begin with `FRAME`");
        at += text.len() as u64 + 1;
        ensure!(at + size <= length, "it is cut short: it ends in frame {frame}\n  fix: copy or make it again");
        ensure!(frame < MOST_FRAMES, "it holds more than {MOST_FRAMES} frames");
        places.push(at);
        at += size;
        file.seek_relative(size as i64)?;
    }
    ensure!(!places.is_empty(), "there are no frames in it");
    remarks.shape = shape;

    let colour = Colour::new(untagged(width, height), full, width, height);
    let planes = Planes { width, height, y: vec![0; width * height], u: vec![0; colours], v: vec![0; colours], halved };
    let starts: Vec<f64> = (0..places.len()).map(|i| fps.map_or(0.0, |fps| i as f64 / fps)).collect();
    Ok(Clip {
        width,
        height,
        still: false,
        end: fps.map(|fps| places.len() as f64 / fps),
        starts,
        tick: 0.0,
        codec: "raw video (Y4M)".to_string(),
        sound: false,
        path: PathBuf::from(path),
        source: Box::new(Y4m { file, planes, colour, places, at: 0 }),
    })
}

impl Source for Y4m {
    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(&place) = self.places.get(self.at) else { return Ok(None) };
        self.file.seek(SeekFrom::Start(place))?;
        for plane in [&mut self.planes.y, &mut self.planes.u, &mut self.planes.v] {
            self.file.read_exact(plane).with_context(|| format!("frame {}", self.at))?;
        }
        self.at += 1;
        Ok(Some(self.planes.rgb(&self.colour)))
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        self.at = frame;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use crate::video::read::open;
    use anyhow::{Context, Result};

    #[test]
    fn every_layout_and_the_errors() -> Result<()> {
        let folder = Scratch::new("y4m");
        let path = folder.path("a.y4m");
        let read = |header: &str, frame: usize, n: usize| {
            let mut bytes = format!("YUV4MPEG2 {header}\n").into_bytes();
            for i in 0..n {
                bytes.extend_from_slice(if i == 1 { b"FRAME Ixyz\n" } else { b"FRAME\n" });
                bytes.extend(vec![128; frame]);
            }
            std::fs::write(&path, bytes).map_err(anyhow::Error::from).and_then(|()| open(&path))
        };
        for (layout, size) in [
            ("C420jpeg", 15 + 12),
            ("", 27),
            ("C420mpeg2 XYSCSS=420MPEG2", 27),
            ("C422", 33),
            ("C444", 45),
            ("Cmono", 15),
        ] {
            let mut reader = read(&format!("W5 H3 F25:2 Ip {layout}"), size, 3)?;
            let info = reader.info.clone();
            assert_eq!((info.width, info.height, info.frames, info.fps), (5, 3, 3, Some(12.5)), "{layout}");
            reader.skip_to(2)?;
            assert_eq!(reader.next()?.context("a frame")?.frame.rgb, [130; 45], "{layout}");
        }
        assert_eq!(read("W5 H3 F25:1 Cmono XCOLORRANGE=FULL", 15, 1)?.next()?.context("a frame")?.frame.rgb, [128; 45]);
        // pixels that are not square keep the picture's shape
        for (shape, size) in
            [("A4:3", (16, 6)), ("A1:2", (12, 12)), ("A1:1", (12, 6)), ("A0:0", (12, 6)), ("A9:0", (12, 6))]
        {
            let mut reader = read(&format!("W12 H6 F25:1 Ip {shape} Cmono"), 72, 2)?;
            assert_eq!((reader.info.width, reader.info.height), size, "{shape}");
            assert_eq!(reader.notes.iter().any(|note| note.contains("not square")), size != (12, 6), "{shape}");
            reader.skip_to(1)?;
            let frame = reader.next()?.context("a frame")?.frame;
            assert_eq!((frame.width, frame.height), size, "{shape}");
        }
        let error = |header: &str, frame, n| read(header, frame, n).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error("W5 H3 F25:1 It", 27, 1).contains("interlaced"));
        assert!(error("W5 H3 F25:1 C420p10", 54, 1).contains("C420p10"));
        assert!(error(&format!("W5 H3 F25:1 C{}", "x".repeat(4000)), 54, 1).len() < 600);
        assert!(read("W5 H3 F25:1 A4:3", 27, 1)?.notes.iter().any(|note| note.contains("not square")));
        assert!(read("W5 H3 F25:1 A1:1", 27, 1)?.notes.is_empty());
        assert!(error("W5 H3 F25:1", 26, 1).contains("frame 0"));
        assert!(error("W5 H3 F25:1", 26, 2).contains("frame"));
        assert!(error("W5 H3 F25:1", 26, 0).contains("no frames"));
        assert!(error("W0 H3 F25:1", 0, 1).contains("fix:"));
        assert!(!error("W99999999999 H3 F25:1", 0, 1).is_empty());
        assert!(!error("W9 H", 0, 1).is_empty());
        Ok(())
    }
}
