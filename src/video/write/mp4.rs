//! MP4: H.264 by openh264 (Constrained Baseline, constant quantiser), 4:2:0, BT.709 limited range, index first.
//!
//! The index is as long as the clip is, so room for it is left at the front and the samples go straight to the disk.
//!
//! Between the frames that are encoded here, another MP4's samples can stand as they are (`copy`): each source brings its
//! parameter sets. They share a sample description as far as they go by different numbers (`mp4_sets`); else there are
//! several, and the index says where one ends and the next begins.

use super::Rate;
use super::colour::{Chroma, Planes, Space};
use super::mp4_boxes::{self, Entry, Part, Track};
use super::mp4_encoder::{encoder, once, quantiser, units};
use super::mp4_sets::{self, KEY, Numbers, PPS, SPS};
use super::mp4_tags::Tags;
use crate::platform::files::{AtomicFile, Output};
use crate::video::{Frame, read};
use anyhow::{Context, Result, ensure};
use image::metadata::Orientation;
use openh264::encoder::*;
use openh264::formats::YUVSlices;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

pub struct Mp4 {
    partial: AtomicFile,
    out: BufWriter<Output>,
    encoder: Encoder,
    qp: u8,
    planes: Planes,
    /// What all samples tell of their colours: settled with the first frame, or the first clip that is copied or expected.
    tags: Tags,
    tags_settled: bool,
    width: u16,
    height: u16,
    rate: Rate,
    /// Frames to come, for the index's room.
    frames: usize,
    sps: Vec<u8>,
    pps: Vec<u8>,
    sizes: Vec<u32>,
    /// CRC-32 of each sample.
    sums: Vec<u32>,
    keys: Vec<u32>,
    /// As `Track::order`.
    order: Vec<i32>,
    /// The descriptions of what is copied, and of what will be.
    copied: Vec<Entry>,
    expected: Vec<Entry>,
    /// What the encoder's parameter sets go by; settled with the first frame.
    numbers: Option<Numbers>,
    /// As `Track::parts`; none for what is encoded here.
    parts: Vec<(usize, Option<usize>)>,
    /// Where the samples begin; known with the first of them.
    start: u64,
}

/// What comes between the index and the first sample: the rest of the room as a `free` box, and `mdat`'s own header,
/// which is longer past 4 GiB.
const MDAT: usize = 8;
const LONG_MDAT: usize = 16;
const FREE: usize = 8;

/// Room for what is not known yet when a copy comes first: the encoder's description, a few changes between parts.
const SLACK: usize = 1024;

/// H.264 keeps 16 pictures at most, so none is shown more places later than that; a file that says so is broken.
const MOST_KEPT: i32 = 16;

/// Twice the step.
const COARSER: u8 = 6;
const COARSEST: u8 = 51;

/// Whether a sample holds a picture that needs none before it.
/// - `length`: bytes that tell a unit's length.
fn holds_key(sample: &[u8], length: usize) -> bool {
    let mut rest = sample;
    while let Some((head, tail)) = rest.split_at_checked(length) {
        let size = head.iter().fold(0, |size, &byte| size << 8 | usize::from(byte));
        if tail.first().is_some_and(|byte| size > 0 && byte & 31 == KEY) {
            return true;
        }
        rest = tail.get(size..).unwrap_or_default();
    }
    false
}

/// MP4's form of a `colr` box, from QuickTime's, which leaves out the range and means limited.
fn numbered(colr: &[u8]) -> Vec<u8> {
    let numbers = colr.get(4..10).unwrap_or(&[0, 2, 0, 2, 0, 2]); // 2: not said
    let range = colr.get(10).filter(|_| colr.starts_with(b"nclx")).map_or(0, |range| range & 128);
    [b"nclx", numbers, &[range]].concat()
}

/// What a film tells of its colours; none where that changes within it.
fn tags(track: &read::Track) -> Option<Tags> {
    let of = |entry: &read::Entry| Tags::of(entry.sets(), entry.colr.as_deref().map(numbered));
    let mut all = track.entries.iter().map(of);
    let first = all.next()??;
    all.all(|tags| tags.as_ref() == Some(&first)).then_some(first)
}

/// Moves `length` bytes of a file from `from` on by `by`, the last first.
fn push_back(file: &mut Output, from: u64, length: u64, by: u64) -> io::Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let bytes = left.min(block.len() as u64);
        left -= bytes;
        let block = &mut block[..bytes as usize];
        file.seek(SeekFrom::Start(from + left))?;
        file.read_exact(block)?;
        file.seek(SeekFrom::Start(from + by + left))?;
        file.write_all(block)?;
    }
    Ok(())
}

impl Mp4 {
    pub fn create(
        path: &Path,
        width: usize,
        height: usize,
        rate: Rate,
        frames: usize,
        quality: u8,
        force: bool,
    ) -> Result<Mp4> {
        let qp = quantiser(quality);
        let encoder = encoder(qp, rate)?;
        let partial = AtomicFile::create(path, force)?;
        let out = partial.writer()?;
        Ok(Mp4 {
            partial,
            out,
            encoder,
            qp,
            planes: Planes::new(width, height, Chroma::Quarter, Space::bt709()),
            tags: Tags::bt709(),
            tags_settled: false,
            width: u16::try_from(width)?,
            height: u16::try_from(height)?,
            rate,
            frames,
            sps: Vec::new(),
            pps: Vec::new(),
            sizes: Vec::new(),
            sums: Vec::new(),
            keys: Vec::new(),
            order: Vec::new(),
            copied: Vec::new(),
            expected: Vec::new(),
            numbers: None,
            parts: Vec::new(),
            start: 0,
        })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        if let Some((_, Some(_))) = self.parts.last() {
            self.encoder = encoder(self.qp, self.rate)?; // nothing is taken from what stands before: a key frame
        }
        self.tags_settled = true;
        self.planes.fill(frame);
        let (w, h) = (frame.width, frame.height);
        let picture = YUVSlices::new((&self.planes.y, &self.planes.u, &self.planes.v), (w, h), (w, w / 2, w / 2));
        let units = loop {
            match self.encoder.encode(&picture).map(|coded| units(&coded)) {
                Ok(units) => break units,
                // A picture of noise can be too big for openh264's buffer (near 8 bits a pixel), and it then stops for
                // good. Another begins with a key frame, coarser.
                Err(_) if self.qp + COARSER <= COARSEST => {
                    self.qp += COARSER;
                    self.encoder = encoder(self.qp, self.rate)?;
                }
                Err(error) => return Err(error).context("openh264 cannot encode a frame"),
            }
        };
        let numbers = self.numbers.unwrap_or_else(|| {
            let known = [self.copied.as_slice(), &self.expected].concat();
            mp4_sets::free(&known).unwrap_or_default() // all taken: a description of its own
        });
        self.numbers = Some(numbers);
        let mut sample = Vec::new();
        for mut unit in units {
            if numbers != Numbers::default() {
                unit = mp4_sets::renumber(&unit, numbers).context("openh264 gave a unit that ends too early")?;
            }
            if unit.first().is_some_and(|byte| byte & 31 == SPS) && self.tags != Tags::bt709() {
                unit = self.tags.write(&unit).context("openh264 gave a parameter set of another form")?;
            }
            match unit.first().map(|byte| byte & 31) {
                Some(SPS) => once(&mut self.sps, unit)?,
                Some(PPS) => once(&mut self.pps, unit)?,
                None => {}
                Some(kind) => {
                    if kind == KEY {
                        self.keys.push(self.sizes.len() as u32 + 1);
                    }
                    sample.extend_from_slice(&u32::try_from(unit.len())?.to_be_bytes());
                    sample.extend_from_slice(&unit);
                }
            }
        }
        self.keys.dedup(); // a picture may come in several units
        ensure!(!sample.is_empty(), "openh264 left out frame {}", self.sizes.len());
        if self.sizes.is_empty() {
            self.begin(false)?;
        }
        self.out.write_all(&sample).with_context(|| self.partial.failed())?;
        self.count((u32::try_from(sample.len())?, crc32fast::hash(&sample)), 0, None);
        Ok(())
    }

    /// Notes a sample that has been written.
    fn count(&mut self, (size, sum): (u32, u32), order: i32, entry: Option<usize>) {
        self.sizes.push(size);
        self.sums.push(sum);
        self.order.push(order);
        match self.parts.last_mut() {
            Some((count, last)) if *last == entry => *count += 1,
            _ => self.parts.push((1, entry)),
        }
    }

    /// Keeps clear of the numbers that the parameter sets of the film in `path` go by, and tells colours as it does.
    pub fn expect(&mut self, path: &Path) {
        let Ok(Some((_, track))) = read::open(path).and_then(|reader| reader.track()) else { return };
        let size = (usize::from(self.width), usize::from(self.height));
        if let Some(tags) = tags(&track).filter(|_| track.entries.iter().all(|entry| entry.plain(size.0, size.1))) {
            self.settle(tags);
        }
        for avc in track.entries.into_iter().filter_map(|entry| entry.avc) {
            self.expected.push(Entry { format: *b"avc1", avcc: avc.body, colr: None, tagged: false });
        }
    }

    /// Takes colours for all samples, where none are taken yet.
    fn settle(&mut self, tags: Tags) {
        if !std::mem::replace(&mut self.tags_settled, true) {
            let (width, height) = (usize::from(self.width), usize::from(self.height));
            self.planes = Planes::new(width, height, Chroma::Quarter, tags.space(width, height));
            self.tags = tags;
        }
    }

    /// Takes over the samples of the film in `path`, byte for byte.
    /// - `most`: frames that there is room for.
    /// - Returns how many there were; none, with nothing written, where the copy would not look the same in every frame:
    ///   see `Writer::copy_clip`.
    pub fn copy(&mut self, path: &Path, most: usize) -> Result<Option<usize>> {
        let Ok(reader) = read::open(path) else { return Ok(None) }; // whoever reads it next will say why
        let size = (usize::from(self.width), usize::from(self.height));
        let info = &reader.info;
        let rate = info.fps.filter(|_| !info.variable_rate).and_then(|fps| Rate::new(fps).ok());
        if (info.width, info.height) != size || rate != Some(self.rate) {
            return Ok(None);
        }
        let Ok(Some((mut file, track))) = reader.track() else { return Ok(None) };
        let (samples, count) = (&track.samples, track.samples.len());
        let upright = track.orientation == Orientation::NoTransforms && !track.slanted;
        let plain = track.entries.iter().all(|entry| entry.plain(size.0, size.1));
        if !upright || !plain || track.shown.len() != count {
            return Ok(None);
        }
        let mut order: Vec<i32> = vec![0; count];
        for (place, &(sample, _)) in track.shown.iter().enumerate() {
            order[sample] = place as i32 - sample as i32;
        }
        if order.iter().any(|places| places.abs() > MOST_KEPT) {
            return Ok(None);
        }
        let (first, avc) = (samples[0], track.entries[samples[0].entry].avc.as_ref());
        let mut bytes = vec![0; first.size as usize];
        file.seek(SeekFrom::Start(first.offset))?;
        file.read_exact(&mut bytes)?;
        if !first.sync || !avc.is_some_and(|avc| holds_key(&bytes, avc.length)) {
            return Ok(None);
        }
        let Some(tags) = tags(&track) else { return Ok(None) };
        self.settle(tags.clone());
        if self.tags != tags {
            return Ok(None); // its colours would be read in two ways within one file
        }
        ensure!(count <= most, "`{}` has {count} frames, and the clip lacks {most}", path.display());

        // From here on the film is taken.
        let mut places = Vec::new(); // of its descriptions among ours
        for entry in &track.entries {
            let entry = Entry {
                format: entry.format,
                avcc: entry.avc.as_ref().map_or(Vec::new(), |avc| avc.body.clone()),
                colr: entry.colr.as_deref().map(numbered),
                tagged: entry.tagged(),
            };
            let place = self.copied.iter().position(|other| *other == entry).unwrap_or(self.copied.len());
            if place == self.copied.len() {
                self.copied.push(entry);
            }
            places.push(place);
        }
        if self.sizes.is_empty() {
            self.begin(true)?;
        }
        let mut run = first.offset..first.offset; // samples that lie side by side go over at once
        for (i, (sample, order)) in samples.iter().zip(order).enumerate() {
            // what was damaged before stays known as damaged
            let sum = track.sums.as_ref().map_or_else(|| sample.sum(&mut file), |sums| Ok(sums[i]))?;
            if sample.offset != run.end {
                self.transfer(&mut file, run, path)?;
                run = sample.offset..sample.offset;
            }
            run.end += u64::from(sample.size);
            if sample.sync {
                self.keys.push(self.sizes.len() as u32 + 1);
            }
            self.count((sample.size, sum), order, Some(places[sample.entry]));
        }
        self.transfer(&mut file, run, path)?;
        Ok(Some(count))
    }

    /// Copies a stretch of another file to where the samples go.
    fn transfer(&mut self, file: &mut File, run: Range<u64>, path: &Path) -> Result<()> {
        let length = run.end - run.start;
        file.seek(SeekFrom::Start(run.start)).with_context(|| format!("cannot read `{}`", path.display()))?;
        let copied = io::copy(&mut file.take(length), &mut self.out);
        let copied = copied.with_context(|| format!("{}, copying from `{}`", self.partial.failed(), path.display()))?;
        ensure!(copied == length, "`{}` changed while it was read", path.display());
        Ok(())
    }

    /// Leaves room for the index, before the first sample.
    fn begin(&mut self, copying: bool) -> Result<()> {
        self.start = self.room(copying)?;
        self.out.seek(SeekFrom::Start(self.start)).with_context(|| self.partial.failed())?;
        Ok(())
    }

    /// Bytes before the first sample, as if every frame were a key frame and every place past 4 GiB. Where a copy makes
    /// the index longer than that, `finish` moves the samples.
    fn room(&self, copying: bool) -> Result<u64> {
        let keys: Vec<u32> = (1..=self.frames as u32).collect();
        let sizes = vec![0; self.frames];
        let entries = if copying { self.copied.clone() } else { vec![self.own()?] };
        // each frame shown earlier or later than the one before
        let order: Vec<i32> = if copying { (0..self.frames as i32).collect() } else { Vec::new() };
        let part = [(self.frames, 0)];
        let track = Track {
            keys: &keys,
            order: &order,
            lead: copying.into(),
            sums: &sizes,
            ..self.track(&entries, &part, &sizes, 1 << 32)
        };
        let slack = if copying { SLACK } else { 0 };
        Ok((mp4_boxes::header(&track).len() + slack + FREE + LONG_MDAT) as u64)
    }

    /// The description of what is encoded here.
    fn own(&self) -> Result<Entry> {
        ensure!(self.sps.len() >= 4 && !self.pps.is_empty(), "openh264 gave no parameter sets");
        Ok(Entry::new(&self.sps, &self.pps, &self.tags))
    }

    fn track<'a>(&'a self, entries: &'a [Entry], parts: &'a [Part], sizes: &'a [u32], start: u64) -> Track<'a> {
        Track {
            width: self.width,
            height: self.height,
            clock: self.rate.clock(),
            entries,
            parts,
            order: &self.order,
            lead: self.order.iter().min().map_or(0, |&least| least.min(0).unsigned_abs()),
            sizes,
            sums: &self.sums,
            keys: &self.keys,
            chunk: self.rate.gop() as usize,
            start,
        }
    }

    /// The descriptions in the order of their first samples, and the parts that name them.
    fn entries(&mut self) -> Result<(Vec<Entry>, Vec<Part>)> {
        if self.parts.iter().any(|(_, entry)| entry.is_none()) {
            let fps = self.rate.num.div_ceil(self.rate.den) as usize;
            let mut sizes = self.sizes.iter().copied();
            let mut own = Vec::new();
            for (count, entry) in &self.parts {
                let part = sizes.by_ref().take(*count);
                if entry.is_none() { own.extend(part) } else { part.for_each(drop) }
            }
            self.sps[3] = mp4_boxes::level(self.width.into(), self.height.into(), fps, &own);
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        // one format for all, as players expect of a track; `avc3` may have all that `avc1` has
        let used = || self.parts.iter().filter_map(|(_, entry)| entry.map(|i| &self.copied[i]));
        let format = if used().any(|entry| &entry.format == b"avc3") { *b"avc3" } else { *b"avc1" };
        for &(count, entry) in &self.parts {
            let entry = entry.map_or_else(|| self.own(), |i| Ok(self.copied[i].clone()))?;
            let entry = Entry { format, ..entry };
            let merged = entries.iter().enumerate().find_map(|(i, other)| Some((i, mp4_sets::merge(other, &entry)?)));
            let (place, entry) = merged.unwrap_or((entries.len(), entry));
            match entries.get_mut(place) {
                Some(old) => *old = entry,
                None => entries.push(entry),
            }
            match parts.last_mut() {
                Some((samples, last)) if *last == place => *samples += count,
                _ => parts.push((count, place)),
            }
        }
        Ok((entries, parts))
    }

    pub fn finish(mut self: Box<Self>) -> Result<()> {
        let (entries, parts) = self.entries()?;
        let data: u64 = self.sizes.iter().map(|&size| u64::from(size)).sum();
        let mut head = mp4_boxes::header(&self.track(&entries, &parts, &self.sizes, self.start));
        while head.len() + FREE + LONG_MDAT > self.start as usize {
            let more = (head.len() + FREE + LONG_MDAT) as u64 - self.start;
            let moved = self.out.flush().and_then(|()| push_back(self.out.get_mut(), self.start, data, more));
            moved.with_context(|| self.partial.failed())?;
            self.start += more;
            head = mp4_boxes::header(&self.track(&entries, &parts, &self.sizes, self.start));
        }
        let long = data + MDAT as u64 > u64::from(u32::MAX);
        let free = self.start as usize - head.len() - if long { LONG_MDAT } else { MDAT };
        head.extend_from_slice(&(free as u32).to_be_bytes());
        head.extend_from_slice(b"free");
        head.resize(head.len() + free - FREE, 0);
        let length = if long { 1 } else { (data + MDAT as u64) as u32 };
        head.extend_from_slice(&length.to_be_bytes());
        head.extend_from_slice(b"mdat");
        if long {
            head.extend_from_slice(&(data + LONG_MDAT as u64).to_be_bytes());
        }
        let write = |out: &mut BufWriter<Output>| {
            out.rewind()?;
            out.write_all(&head)?;
            out.flush()
        };
        write(&mut self.out).with_context(|| self.partial.failed())?;
        self.partial.commit()
    }
}

#[cfg(test)]
#[path = "mp4_tests.rs"]
mod tests;
