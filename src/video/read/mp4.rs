//! MP4 and MOV: which pictures a file holds, where they lie, when and how they are shown. Decodes nothing.
//!
//! Written here because `re_mp4` 0.5 reads no edit list, no rotation, one sample description and no `colr`, and trusts
//! the counts that it finds. Source: ISO/IEC 14496-12, 14496-15; QuickTime File Format Specification.

use super::boxes::{Bytes, Name, child, children, descend};
use super::samples::{self, Defaults, Fragment, Sample};
use super::shape::Shape;
#[cfg(feature = "h264")]
use super::sps::{self, Sps};
use anyhow::{Context, Result, anyhow, bail, ensure};
use image::metadata::Orientation;
use std::fs::File;
#[cfg(feature = "h264")]
use std::io::{BufRead, BufReader};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The first track of pictures.
#[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder looks into it"))]
pub struct Track {
    /// Which of the file's picture tracks, for another reader to find it.
    pub index: usize,
    pub orientation: Orientation,
    /// A turn by something else than a quarter, which is left alone.
    pub slanted: bool,
    pub timescale: u32,
    pub entries: Vec<Entry>,
    /// In the order of decoding.
    pub samples: Vec<Sample>,
    /// In the order of showing: the sample, and when in seconds. The first is at 0.
    pub shown: Vec<(usize, f64)>,
    /// When the last frame goes.
    pub end: f64,
    /// The file also has sound.
    pub sound: bool,
    /// Frames are shown twice, backwards or held still by the edit list, which is not done here.
    pub edited: bool,
    /// CRC-32 of each sample, where our own writer noted it: see [`SUMS`].
    pub sums: Option<Vec<u32>>,
}

/// What a `uuid` box in the index begins with that holds the CRC-32 of each sample. H.264 has none, and most damage decodes, to
/// other pictures.
pub const SUMS: [u8; 16] = *b"reel sums CRC-32";

/// A sample description: how some of the samples are coded.
#[derive(Clone, Debug, Default)]
#[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder looks into it"))]
pub struct Entry {
    pub format: Name,
    pub avc: Option<Avc>,
    /// `matrix_coefficients`, where the container says.
    pub matrix: Option<u8>,
    pub full: Option<bool>,
    /// `transfer_characteristics`, where the container says.
    pub transfer: Option<u8>,
    /// Of pixels that are not square.
    pub shape: Option<Shape>,
    /// What the box `colr` holds, where it names its colours by number.
    pub colr: Option<Vec<u8>>,
}

/// `avcC`: parameter sets (without start codes) and how many bytes tell a unit's length.
#[derive(Clone, Debug, Default)]
#[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder looks into it"))]
pub struct Avc {
    pub length: usize,
    pub sets: Vec<Vec<u8>>,
    /// The box's contents, as they stand.
    pub body: Vec<u8>,
}

#[cfg(feature = "h264")]
impl Track {
    /// The frames whose samples are not what was written, as far as that is known.
    pub fn damaged(&self, file: &mut File) -> Result<Vec<usize>> {
        let Some(sums) = &self.sums else { return Ok(Vec::new()) };
        let mut damaged = Vec::new();
        for (frame, &(sample, _)) in self.shown.iter().enumerate() {
            if self.samples[sample].sum(file)? != sums[sample] {
                damaged.push(frame);
            }
        }
        Ok(damaged)
    }
}

#[cfg(feature = "h264")]
impl Sample {
    /// Its CRC-32.
    pub fn sum(&self, file: &mut File) -> Result<u32> {
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = BufReader::new(file.take(self.size.into()));
        let mut crc = crc32fast::Hasher::new();
        loop {
            let block = bytes.fill_buf()?;
            if block.is_empty() {
                return Ok(crc.finalize());
            }
            crc.update(block);
            let n = block.len();
            bytes.consume(n);
        }
    }
}

#[cfg(feature = "h264")]
impl super::Reader {
    /// The file and the index that our own decoder reads; none where `ffmpeg` reads it or where it is no film.
    pub(in crate::video) fn track(&self) -> Result<Option<(File, Track)>> {
        if self.spare.is_none() {
            return Ok(None);
        }
        let mut file = File::open(&self.path)?;
        let track = read(&self.path, &mut file)?;
        Ok(Some((file, track)))
    }
}

#[cfg(feature = "h264")]
impl Entry {
    /// Whether all its pictures are H.264 of that size, whole frames of square pixels in 8-bit 4:2:0.
    pub fn plain(&self, width: usize, height: usize) -> bool {
        let plain = |sps: &Sps| {
            (sps.width, sps.height, sps.chroma_format, sps.bits, sps.progressive) == (width, height, 1, 8, true)
                && sps.shape.is_none()
        };
        let ours = matches!(&self.format, b"avc1" | b"avc3") && self.avc.is_some() && self.shape.is_none();
        ours && self.sets().all(|sps| sps.as_ref().is_ok_and(plain))
    }

    /// Whether the parameter sets tell the colours, so that the container need not.
    pub fn tagged(&self) -> bool {
        self.sets().all(|sps| sps.is_ok_and(|sps| sps.matrix.is_some() && sps.full.is_some()))
    }

    /// The sequence parameter sets.
    pub fn sets(&self) -> impl Iterator<Item = Result<Sps>> {
        let sets = self.avc.iter().flat_map(|avc| &avc.sets);
        sets.filter(|set| set.first().is_some_and(|byte| byte & 31 == 7)).map(|set| sps::parse(set))
    }
}

/// An index longer than this belongs to no clip (it is 10 bytes a frame or so). Fragments count together.
const LONGEST_INDEX: u64 = 128 << 20;
/// Boxes side by side in a file, and tracks of pictures that are looked into. Files hold a handful, or two for each fragment.
const MOST_BOXES: usize = 1 << 20;
const MOST_TRACKS: usize = 8;
/// Bytes of an edit list: a hundred thousand cuts.
const LONGEST_EDITS: usize = 2 << 20;

/// Reads the index (`moov`, and every fragment's).
/// - Errors when it is missing or cut, when there are no pictures, or when the file ends before the last sample does.
pub fn read(path: &Path, file: &mut File) -> Result<Track> {
    let length = file.seek(SeekFrom::End(0))?;
    let cut = "the recording or the copy was cut short\n  fix: copy or record it again; \
               without its index a file cannot be read";
    let mut moov = None;
    let mut fragments = Vec::new();
    let mut at = 0;
    let mut torn = false;
    let (mut boxes, mut indices) = (0, 0);
    while at + 8 <= length {
        boxes += 1;
        ensure!(boxes <= MOST_BOXES, "it holds more than {MOST_BOXES} boxes");
        let (name, header, size) = header(file, at, length)?;
        ensure!(size >= header, "box `{}` at byte {at} has an impossible length", name.escape_ascii());
        torn = size > length - at;
        if matches!(&name, b"moov" | b"moof") {
            ensure!(!torn, "`{}` ends in its index (`{}`): {cut}", path.display(), name.escape_ascii());
            indices += size;
            ensure!(indices <= LONGEST_INDEX, "the index is {indices} bytes long");
            let mut body = vec![0; (size - header) as usize];
            file.seek(SeekFrom::Start(at + header))?;
            file.read_exact(&mut body)?;
            match (&name, &moov) {
                (b"moov", None) => moov = Some(body),
                (b"moof", _) => fragments.push((at, body)),
                _ => {}
            }
        }
        if torn {
            break;
        }
        at += size;
    }
    let moov = moov.with_context(|| format!("`{}` has no index (`moov`): {cut}", path.display()))?;
    let mut track = track(&moov, &fragments, length)?;
    if let Some(sample) = track.samples.iter().position(|s| s.offset.saturating_add(s.size.into()) > length) {
        let frame = track.shown.iter().position(|&(i, _)| i == sample).unwrap_or(sample);
        bail!(
            "`{}` is cut short: it ends in frame {frame} of {}\n  fix: copy it again, or keep what is whole with \
             `ffmpeg -i IN -c:v libx264 -crf 10 -pix_fmt yuv420p OUT.mp4`",
            path.display(),
            track.shown.len()
        );
    }
    let torn = torn && !fragments.is_empty(); // a fragment's samples all lie in the file, but the next is not whole
    ensure!(!torn, "`{}` ends within a fragment, after frame {}: {cut}", path.display(), track.shown.len());
    // Samples without bytes (a muxer's way to hold the one before) are no pictures.
    track.shown.retain(|&(i, _)| track.samples[i].size > 0);
    Ok(track)
}

/// - Returns name, header's length, whole length.
fn header(file: &mut File, at: u64, length: u64) -> Result<(Name, u64, u64)> {
    let mut bytes = [0; 16];
    file.seek(SeekFrom::Start(at))?;
    let there = (length - at).min(16) as usize;
    file.read_exact(&mut bytes[..there])?;
    let mut bytes = Bytes(&bytes[..there]);
    let (size, name) = (bytes.u32()?, bytes.name()?);
    Ok(match size {
        0 => (name, 8, length - at),
        1 => (name, 16, bytes.u64()?),
        size => (name, 8, u64::from(size)),
    })
}

fn track(moov: &[u8], fragments: &[(u64, Vec<u8>)], length: u64) -> Result<Track> {
    let boxes = children(moov)?;
    ensure!(boxes.iter().all(|(name, _)| name != b"cmov"), "the index is compressed, which is not read");
    let traks = || boxes.iter().filter(|(name, _)| name == b"trak").map(|(_, body)| *body);
    let kind = |trak| descend(trak, &[b"mdia", b"hdlr"]).ok().and_then(|hdlr| hdlr.get(8..12));
    let sound = traks().any(|trak| kind(trak) == Some(b"soun"));
    let scale = descend(moov, &[b"mvhd"]).and_then(timescale)?;
    let mvex = child(moov, b"mvex")?.unwrap_or_default();
    let pictures = traks().filter(|&trak| kind(trak) == Some(b"vide"));
    for (index, trak) in pictures.take(MOST_TRACKS).enumerate() {
        let mdia = descend(trak, &[b"mdia"])?;
        let timescale = descend(mdia, &[b"mdhd"]).and_then(timescale)?;
        let stbl = descend(mdia, &[b"minf", b"stbl"])?;
        let entries = entries(descend(stbl, &[b"stsd"])?)?;
        let (id, orientation) = tkhd(descend(trak, &[b"tkhd"])?)?;
        let mut samples = samples::table(stbl, length)?;
        let mut fragment = Fragment { track: id, defaults: Defaults::find(mvex, id)?, length, now: 0, counted: 0 };
        for (at, moof) in fragments {
            fragment.append(*at, moof, &mut samples)?;
        }
        if samples.is_empty() {
            continue;
        }
        ensure!(
            samples.iter().all(|s| s.entry < entries.len()),
            "a sample names a description that is missing (there are {})",
            entries.len()
        );
        let edits = match child(trak, b"edts")? {
            Some(edts) => child(edts, b"elst")?.map(edits).transpose()?.unwrap_or_default(),
            None => Vec::new(),
        };
        let sums = sums(&boxes, samples.len()).filter(|_| index == 0 && fragments.is_empty());
        let (shown, end, edited) = show(&samples, &edits, timescale, scale);
        return Ok(Track {
            index,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            slanted: orientation.is_none(),
            timescale,
            entries,
            samples,
            shown,
            end,
            sound,
            edited,
            sums,
        });
    }
    bail!("there are no pictures in it{}\n  fix: give a film with pictures", if sound { ", only sound" } else { "" })
}

/// The sums of so many samples; none where the index has none, or of another number.
fn sums(boxes: &[(Name, &[u8])], samples: usize) -> Option<Vec<u32>> {
    let sums = boxes.iter().filter(|(name, _)| name == b"uuid").find_map(|(_, body)| body.strip_prefix(&SUMS))?;
    let sums: Vec<u32> = sums.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
    (sums.len() == samples).then_some(sums)
}

/// Of `mvhd` and `mdhd`.
fn timescale(body: &[u8]) -> Result<u32> {
    let mut b = Bytes(body);
    let (version, _) = b.version()?;
    b.take(if version == 0 { 8 } else { 16 })?; // dates
    let scale = b.u32()?;
    ensure!(scale > 0, "a track's clock stands still");
    Ok(scale)
}

/// Track number and the turn that shows it upright; none where it is no quarter turn.
fn tkhd(body: &[u8]) -> Result<(u32, Option<Orientation>)> {
    let mut b = Bytes(body);
    let (version, _) = b.version()?;
    b.take(if version == 0 { 8 } else { 16 })?; // dates
    let id = b.u32()?;
    b.take(if version == 0 { 8 } else { 12 } + 16)?; // duration, layer, volume
    let mut word = || b.u32().map(|word| (word as i32).signum());
    let (right_x, right_y, _) = (word()?, word()?, word()?); // where a step to the right goes
    let (down_x, down_y) = (word()?, word()?);
    let turn = match (right_x, right_y, down_x, down_y) {
        (1, 0, 0, 1) | (0, 0, 0, 0) => Orientation::NoTransforms,
        (0, 1, -1, 0) => Orientation::Rotate90,
        (-1, 0, 0, -1) => Orientation::Rotate180,
        (0, -1, 1, 0) => Orientation::Rotate270,
        (-1, 0, 0, 1) => Orientation::FlipHorizontal,
        (1, 0, 0, -1) => Orientation::FlipVertical,
        (0, 1, 1, 0) => Orientation::Rotate90FlipH,
        (0, -1, -1, 0) => Orientation::Rotate270FlipH,
        _ => return Ok((id, None)),
    };
    Ok((id, Some(turn)))
}

fn entries(stsd: &[u8]) -> Result<Vec<Entry>> {
    let body = stsd.get(8..).context("box `stsd` is too short")?;
    let entries: Result<Vec<Entry>> = children(body)?.into_iter().map(|(format, body)| entry(format, body)).collect();
    let entries = entries?;
    ensure!(!entries.is_empty(), "the pictures have no description (`stsd`)");
    Ok(entries)
}

fn entry(format: Name, body: &[u8]) -> Result<Entry> {
    let mut b = Bytes(body);
    b.take(78)?; // sizes, which the stream knows better; resolution; the compressor's name
    let mut entry = Entry { format, ..Entry::default() };
    // Old MOVs have a colour table or other odd ends after the fixed part; only H.264 has to have boxes there.
    let boxes = if matches!(&format, b"avc1" | b"avc3") { children(b.0)? } else { children(b.0).unwrap_or_default() };
    for (name, body) in boxes {
        let mut b = Bytes(body);
        match &name {
            b"avcC" => entry.avc = Some(avc(body)?),
            b"colr" if matches!(b.take(4)?, b"nclx" | b"nclc") => {
                entry.colr = Some(body.to_vec());
                b.take(2)?; // primaries
                entry.transfer = Some(b.u16()?.min(255) as u8);
                entry.matrix = Some(b.u16()?.min(255) as u8).filter(|&matrix| matrix != 2);
                entry.full = b.u8().ok().map(|flags| flags & 128 != 0);
            }
            b"pasp" => entry.shape = Shape::new(b.u32()?, b.u32()?),
            _ => {}
        }
    }
    Ok(entry)
}

fn avc(body: &[u8]) -> Result<Avc> {
    let mut b = Bytes(body);
    b.take(4)?;
    let length = usize::from(b.u8()? & 3) + 1;
    let mut sets = Vec::new();
    for mask in [31, 255] {
        for _ in 0..b.u8()? & mask {
            let size = b.u16()?;
            sets.push(b.take(size.into())?.to_vec());
        }
    }
    Ok(Avc { length, sets, body: body.to_vec() })
}

/// A stretch of the track as it is shown. `length` in the movie's ticks (0: all the rest), `start` in the track's; no
/// start is an empty stretch. `still` where it does not run at speed 1.
#[derive(Clone)]
struct Edit {
    length: u64,
    start: Option<i64>,
    still: bool,
}

fn edits(elst: &[u8]) -> Result<Vec<Edit>> {
    let mut b = Bytes(elst);
    let (version, _) = b.version()?;
    ensure!(elst.len() <= LONGEST_EDITS, "the edit list is {} bytes long", elst.len());
    let rows = b.rows(if version == 0 { 12 } else { 20 })?;
    rows.map(|mut row| {
        let length = row.time(version)?;
        let start = if version == 0 { i64::from(row.u32()? as i32) } else { row.u64()? as i64 };
        Ok(Edit { length, start: Some(start).filter(|&start| start >= 0), still: row.u32()? != 0x10000 })
    })
    .collect()
}

/// Which samples are shown, in order and when; when the last goes; whether the edit list asks for more than leaving out.
/// - `timescale`: the track's, `scale`: the movie's.
fn show(samples: &[Sample], edits: &[Edit], timescale: u32, scale: u32) -> (Vec<(usize, f64)>, f64, bool) {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|&i| samples[i].shown);
    let stretches: Vec<(i64, i64)> = edits
        .iter()
        .filter_map(|edit| {
            let start = edit.start?;
            let length = (u128::from(edit.length) * u128::from(timescale) + u128::from(scale / 2)) / u128::from(scale);
            let end = if edit.length == 0 { i64::MAX } else { start.saturating_add(length.min(1 << 62) as i64) };
            Some((start, end))
        })
        .collect();
    let edited = edits.iter().any(|edit| edit.start.is_some() && edit.still)
        || stretches.windows(2).any(|pair| pair[1].0 < pair[0].1);
    // Each sample is in one stretch at most from here on: a list can ask for any number of repeats.
    let all = vec![(i64::MIN, i64::MAX)];
    let stretches = if stretches.is_empty() || edited { all } else { stretches };

    let mut shown = Vec::new();
    let mut before: f64 = 0.0; // seconds of the stretches so far
    let mut end = 0.0;
    for (from, to) in stretches {
        let place = |time: i64| order.partition_point(|&i| samples[i].shown < time);
        let (first, last) = (place(from), if to == i64::MAX { order.len() } else { place(to) });
        let inside = &order[first..last.max(first)];
        let Some(&first) = inside.first() else { continue };
        let origin = samples[first].shown.min(from.max(samples[first].shown));
        let seconds = |ticks: i64| before + ticks.saturating_sub(origin) as f64 / f64::from(timescale);
        shown.extend(inside.iter().map(|&i| (i, seconds(samples[i].shown))));
        let last = inside.last().map_or(0, |&i| samples[i].shown.saturating_add(samples[i].lasts.into()));
        end = seconds(last.min(to));
        before = end;
    }
    (shown, end, edited)
}

/// What people call it.
pub fn codec(format: Name) -> String {
    let name = match &format {
        b"avc1" | b"avc3" => "H.264",
        b"hvc1" | b"hev1" => "HEVC (H.265)",
        b"dvh1" | b"dvhe" => "HEVC (Dolby Vision)",
        b"av01" => "AV1",
        b"vp08" => "VP8",
        b"vp09" => "VP9",
        b"mp4v" => "MPEG-4 part 2",
        b"apcn" | b"apch" | b"apcs" | b"apco" | b"ap4h" | b"ap4x" => "ProRes",
        b"mjpa" | b"mjpb" | b"jpeg" => "Motion JPEG",
        b"s263" | b"h263" => "H.263",
        other => return format!("`{}`", other.escape_ascii()),
    };
    name.to_string()
}

/// Encrypted films cannot be read by anyone without their key.
pub fn check_open(entries: &[Entry]) -> Result<()> {
    if entries.iter().any(|entry| &entry.format == b"encv") {
        return Err(anyhow!("it is encrypted\n  fix: give a file without copy protection"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_lists_choose_and_time_the_frames() {
        // Decoded 0 2 1 3, ten ticks each, 100 ticks a second; the movie's clock has 1000.
        let samples = [20, 40, 30, 50].map(|shown| Sample { shown, lasts: 10, size: 1, ..Sample::default() });
        let edit = |length, start| Edit { length, start, still: false };
        let show = |edits: &[Edit]| show(&samples, edits, 100, 1000);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let (shown, end, edited) = show(&[]);
        assert_eq!(shown.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 2, 1, 3]);
        assert!(near(shown[3].1, 0.3) && near(end, 0.4) && !edited);
        let (shown, end, edited) = show(&[edit(500, None), edit(200, Some(30))]); // waits, then two of them
        assert_eq!(shown.iter().map(|s| s.0).collect::<Vec<_>>(), [2, 1]);
        assert!(near(shown[0].1, 0.0) && near(shown[1].1, 0.1) && near(end, 0.2) && !edited);
        assert!(show(&[edit(200, Some(40)), edit(200, Some(20))]).2); // backwards
        assert!(show(&[Edit { length: 200, start: Some(20), still: true }]).2);
        let (shown, _, edited) = show(&vec![edit(0, Some(0)); 100_000]); // again and again
        assert!(edited && shown.len() == samples.len());
        assert!(show(&[edit(0, Some(1000))]).0.is_empty());
    }
}
