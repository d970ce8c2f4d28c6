//! What stands before an MP4's pictures: the file's type and the index, `ftyp` and `moov`.
//!
//! Written here because `muxide` 0.5 knows no `colr` box and no clock but 90 kHz, and keeps all samples in memory.
//! No box carries a date. Source: ISO/IEC 14496-12 (boxes), 14496-15 (`avc1`, `avcC`).

use super::mp4_tags::Tags;
use crate::video::read::SUMS;

/// A sample description: what its boxes hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `avc1`, or `avc3` where parameter sets also stand among the samples.
    pub format: [u8; 4],
    pub avcc: Vec<u8>,
    pub colr: Option<Vec<u8>>,
    /// The parameter sets tell the colours as well.
    pub tagged: bool,
}

impl Entry {
    /// H.264 of ours.
    /// - `sps`, `pps`: without start codes. `tags`: the colours that `sps` tells.
    pub fn new(sps: &[u8], pps: &[u8], tags: &Tags) -> Entry {
        let length = |bytes: &[u8]| (bytes.len() as u16).to_be_bytes();
        let avcc = [
            &[1],
            &sps[1..4],    // profile, constraints, level
            &[0xFF, 0xE1], // samples' lengths in 4 bytes; one SPS
            &length(sps),
            sps,
            &[1], // one PPS
            &length(pps),
            pps,
        ];
        Entry { format: *b"avc1", avcc: avcc.concat(), colr: tags.colr.clone(), tagged: tags.tell() }
    }
}

/// How many samples in a row share a description, and which one, from 0.
pub type Part = (usize, usize);

/// One video track that fills the file.
pub struct Track<'a> {
    pub width: u16,
    pub height: u16,
    /// Ticks a second, and ticks a frame.
    pub clock: (u32, u32),
    /// How samples are coded.
    pub entries: &'a [Entry],
    pub parts: &'a [Part],
    /// For each sample its place in the order of showing, less its place in the order of decoding.
    pub order: &'a [i32],
    /// Frames that the first one waits for, so that none is shown before it is decoded: the least of `order`, negated.
    pub lead: u32,
    /// Bytes of each sample, and their CRC-32.
    pub sizes: &'a [u32],
    pub sums: &'a [u32],
    /// Samples that can be started from, counted from 1.
    pub keys: &'a [u32],
    /// Samples in a chunk: what a player reads at once.
    pub chunk: usize,
    /// Where in the file the first sample is.
    pub start: u64,
}

/// A box: length, name, parts.
fn atom(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let length = 8 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = (length as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(name);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// A table: version and flags 0, how many rows, the rows.
fn table(name: &[u8; 4], rows: usize, values: &[u32]) -> Vec<u8> {
    atom(name, &[&words(&[0, rows as u32]), &words(values)])
}

/// Rows for a picture that is neither turned nor scaled (16.16 and 2.30 fixed point).
const MATRIX: [u32; 9] = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x4000_0000];

/// `ftyp` and `moov`.
/// - The duration, frames times ticks, must fit in 32 bits.
pub fn header(track: &Track) -> Vec<u8> {
    let ftyp = atom(b"ftyp", &[b"isom", &words(&[0x200]), b"isomiso2avc1mp41"]);
    let (second, frame) = track.clock;
    let duration = track.sizes.len() as u32 * frame;
    let mvhd = [
        words(&[0, 0, 0, second, duration, 0x10000, 0x0100_0000, 0, 0]), // no dates, speed 1, volume 1
        words(&MATRIX),
        words(&[0, 0, 0, 0, 0, 0, 2]), // next track
    ];
    let tkhd = [
        words(&[3, 0, 0, 1, 0, duration, 0, 0, 0, 0]), // enabled, in the movie; no dates; track 1
        words(&MATRIX),
        words(&[u32::from(track.width) << 16, u32::from(track.height) << 16]),
    ];
    let mdhd = words(&[0, 0, 0, second, duration, 0x55C4_0000]); // no dates; language `und`
    let hdlr: [&[u8]; 4] = [&words(&[0, 0]), b"vide", &words(&[0, 0, 0]), b"VideoHandler\0"];
    let dinf = atom(b"dinf", &[&atom(b"dref", &[&words(&[0, 1]), &atom(b"url ", &[&words(&[1])])])]); // in this file
    let vmhd = atom(b"vmhd", &[&words(&[1, 0, 0])]);
    let minf = atom(b"minf", &[&vmhd, &dinf, &samples(track)]);
    let mdia = atom(b"mdia", &[&atom(b"mdhd", &[&mdhd]), &atom(b"hdlr", &hdlr), &minf]);
    let edits = match track.lead {
        0 => Vec::new(),
        lead => atom(b"edts", &[&table(b"elst", 1, &[duration, lead * frame, 0x10000])]), // all of it, from there on
    };
    let trak = atom(b"trak", &[&atom(b"tkhd", &[&tkhd.concat()]), &edits, &mdia]);
    let sums = atom(b"uuid", &[&SUMS, &words(track.sums)]);
    [ftyp, atom(b"moov", &[&atom(b"mvhd", &[&mvhd.concat()]), &trak, &sums])].concat()
}

/// `stbl`: how each sample is coded, how long it lasts, how big it is and where.
fn samples(track: &Track) -> Vec<u8> {
    let count = track.sizes.len();
    let stts = table(b"stts", 1, &[count as u32, track.clock.1]);
    let stss = table(b"stss", track.keys.len(), track.keys);
    let stsz = atom(b"stsz", &[&words(&[0, 0, count as u32]), &words(track.sizes)]);

    let chunk =
        |&(count, entry): &Part| (0..count).step_by(track.chunk).map(move |at| ((count - at).min(track.chunk), entry));
    let chunks: Vec<Part> = track.parts.iter().flat_map(chunk).collect();
    let mut runs = Vec::new(); // first chunk, samples in each, description
    for (i, chunk) in chunks.iter().enumerate() {
        if i == 0 || chunk != &chunks[i - 1] {
            runs.extend([i as u32 + 1, chunk.0 as u32, chunk.1 as u32 + 1]);
        }
    }
    let stsc = table(b"stsc", runs.len() / 3, &runs);

    let mut at = track.start;
    let mut offsets = Vec::new();
    let mut sizes = track.sizes.iter();
    for (samples, _) in chunks {
        offsets.push(at);
        at += sizes.by_ref().take(samples).map(|&size| u64::from(size)).sum::<u64>();
    }
    let places = if at <= u64::from(u32::MAX) {
        table(b"stco", offsets.len(), &offsets.iter().map(|&offset| offset as u32).collect::<Vec<_>>())
    } else {
        let halves: Vec<u32> = offsets.iter().flat_map(|&offset| [(offset >> 32) as u32, offset as u32]).collect();
        table(b"co64", offsets.len(), &halves)
    };
    let descriptions: Vec<u8> = track.entries.iter().flat_map(|entry| description(track, entry)).collect();
    let stsd = atom(b"stsd", &[&words(&[0, track.entries.len() as u32]), &descriptions]);
    let ctts = if track.lead > 0 { offsets_in_time(track) } else { Vec::new() };
    atom(b"stbl", &[&stsd, &stts, &ctts, &stss, &stsc, &stsz, &places])
}

/// `ctts`: how many ticks after its decoding each sample is shown, in runs. Never negative, so that its first version,
/// which every player knows, will do.
fn offsets_in_time(track: &Track) -> Vec<u8> {
    let mut runs: Vec<[u32; 2]> = Vec::new();
    for order in track.order {
        let ticks = track.lead.saturating_add_signed(*order) * track.clock.1;
        match runs.last_mut() {
            Some(run) if run[1] == ticks => run[0] += 1,
            _ => runs.push([1, ticks]),
        }
    }
    table(b"ctts", runs.len(), &runs.concat())
}

/// `avc1`: an H.264 picture of square pixels.
fn description(track: &Track, entry: &Entry) -> Vec<u8> {
    let colr = entry.colr.as_ref().map_or(Vec::new(), |colr| atom(b"colr", &[colr]));
    let pasp = atom(b"pasp", &[&words(&[1, 1])]);
    let size = [track.width.to_be_bytes(), track.height.to_be_bytes()].concat();
    let fixed: [&[u8]; 6] = [
        &words(&[0, 1, 0, 0, 0, 0]),        // data reference 1
        &size,                              //
        &words(&[0x48_0000, 0x48_0000, 0]), // 72 dots an inch
        &[0, 1],                            // one frame a sample
        &[0; 32],                           // no compressor's name
        &[0, 24, 0xFF, 0xFF],               // depth; no colour table
    ];
    atom(&entry.format, &[&fixed.concat(), &atom(b"avcC", &[&entry.avcc]), &colr, &pasp])
}

/// H.264's levels: number, macroblocks a second, macroblocks a frame, kbit/s. Source: ITU-T H.264, table A-1, Baseline.
const LEVELS: [(u8, u64, u64, u64); 16] = [
    (10, 1_485, 99, 64),
    (11, 3_000, 396, 192),
    (12, 6_000, 396, 384),
    (13, 11_880, 396, 768),
    (20, 11_880, 396, 2_000),
    (21, 19_800, 792, 4_000),
    (22, 20_250, 1_620, 4_000),
    (30, 40_500, 1_620, 10_000),
    (31, 108_000, 3_600, 14_000),
    (32, 216_000, 5_120, 20_000),
    (40, 245_760, 8_192, 20_000),
    (41, 245_760, 8_192, 50_000),
    (42, 522_240, 8_704, 50_000),
    (50, 589_824, 22_080, 135_000),
    (51, 983_040, 36_864, 240_000),
    (52, 2_073_600, 36_864, 240_000),
];

/// The lowest level that allows the clip, judged by its busiest second; players take a level for what they must be able
/// to do. The highest where none does.
/// - `fps`: rounded up.
pub fn level(width: usize, height: usize, fps: usize, sizes: &[u32]) -> u8 {
    let (across, down) = (width.div_ceil(16) as u64, height.div_ceil(16) as u64);
    let second = |window: &[u32]| window.iter().map(|&size| u64::from(size)).sum::<u64>() * 8 / 1000;
    let busiest = sizes.windows(fps.clamp(1, sizes.len().max(1))).map(second).max().unwrap_or(0);
    let fits = |&&(_, a_second, a_frame, kbits): &&(u8, u64, u64, u64)| {
        let frame = across * down;
        let side = across.max(down);
        frame * fps as u64 <= a_second && frame <= a_frame && side * side <= 8 * a_frame && busiest <= kbits
    };
    LEVELS.iter().find(fits).map_or(52, |level| level.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_size_rate_and_bits() {
        assert_eq!(level(768, 512, 24, &[10_000; 48]), 30); // 1536 macroblocks, 36864 a second, 1.9 Mbit/s
        assert_eq!(level(768, 512, 30, &[10_000; 48]), 31);
        assert_eq!(level(768, 512, 24, &[60_000; 48]), 31); // 11.5 Mbit/s
        assert_eq!(level(1920, 1080, 30, &[1000; 3]), 40);
        assert_eq!(level(16, 16, 8, &[]), 10);
        assert_eq!(level(3840, 2160, 240, &[1000; 3]), 52);
    }

    #[test]
    fn places_past_4_gib_are_long() {
        let sizes = vec![1 << 30; 6];
        let track = Track {
            width: 16,
            height: 16,
            clock: (24, 1),
            entries: &[Entry::new(&[0x67, 66, 0xC0, 30], &[0x68], &Tags::bt709())],
            parts: &[(6, 0)],
            order: &[],
            lead: 0,
            sizes: &sizes,
            sums: &[],
            keys: &[1],
            chunk: 4,
            start: 1000,
        };
        let bytes = header(&track);
        let at = bytes.windows(4).position(|name| name == b"co64").expect("co64") + 8;
        let rows = [[0, 0, 0, 2].as_slice(), &1000u64.to_be_bytes(), &((4u64 << 30) + 1000).to_be_bytes()].concat();
        assert_eq!(bytes[at..at + rows.len()], rows);
    }
}
