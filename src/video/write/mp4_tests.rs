//! Reads back what `mp4` wrote, with a walk over the boxes and openh264's decoder.

use super::super::Writer;
use super::super::testing::*;
use super::*;
use openh264::decoder::{Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

/// The contents of the first box down `path`.
fn find<'a>(mut bytes: &'a [u8], path: &[&[u8; 4]]) -> &'a [u8] {
    for &name in path {
        bytes = children(bytes).into_iter().find(|(found, _)| found == name).expect("a box").1;
    }
    bytes
}

fn children(mut bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 8 {
        let length = word(bytes, 0) as usize;
        found.push((&bytes[4..8], &bytes[8..length]));
        bytes = &bytes[length..];
    }
    found
}

fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_be_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes"))
}

const STBL: [&[u8; 4]; 5] = [b"moov", b"trak", b"mdia", b"minf", b"stbl"];

fn stbl<'a>(file: &'a [u8], name: &[u8; 4]) -> &'a [u8] {
    find(find(file, &STBL), &[name])
}

/// What is in `avc1`, past its fixed part.
fn avc1(file: &[u8]) -> &[u8] {
    &find(&stbl(file, b"stsd")[8..], &[b"avc1"])[78..]
}

/// Every sample's bytes, by `stsc`, `stsz` and `stco`.
fn samples(file: &[u8]) -> Vec<&[u8]> {
    let (stsz, stco, stsc) = (stbl(file, b"stsz"), stbl(file, b"stco"), stbl(file, b"stsc"));
    let runs = (0..word(stsc, 1) as usize).map(|i| (word(stsc, 2 + 3 * i), word(stsc, 3 + 3 * i)));
    let runs: Vec<(u32, u32)> = runs.collect();
    let mut found = Vec::new();
    for chunk in 0..word(stco, 1) {
        let mut at = word(stco, 2 + chunk as usize) as usize;
        let count = runs.iter().rfind(|run| run.0 <= chunk + 1).expect("a run").1;
        for _ in 0..count {
            let size = word(stsz, 3 + found.len()) as usize;
            found.push(&file[at..at + size]);
            at += size;
        }
    }
    assert_eq!(found.len(), word(stsz, 2) as usize);
    found
}

/// BT.709 limited range to RGB, at one pixel.
fn rgb(picture: &impl YUVSource, x: usize, row: usize) -> [u8; 3] {
    let (sy, su, sv) = picture.strides();
    let y = f64::from(picture.y()[row * sy + x]) - 16.0;
    let u = f64::from(picture.u()[row / 2 * su + x / 2]) - 128.0;
    let v = f64::from(picture.v()[row / 2 * sv + x / 2]) - 128.0;
    let y = y * 255.0 / 219.0;
    let (u, v) = (u * 255.0 / 224.0, v * 255.0 / 224.0);
    let (kr, kb) = (0.2126, 0.0722);
    let (r, b) = (y + 2.0 * (1.0 - kr) * v, y + 2.0 * (1.0 - kb) * u);
    [r, (y - kr * r - kb * b) / (1.0 - kr - kb), b].map(|c| c.round().clamp(0.0, 255.0) as u8)
}

/// Decodes and compares with `patches`: the worst difference of every frame, one a frame.
fn decoded(file: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let avcc = find(avc1(file), &[b"avcC"]);
    let sps = usize::from(avcc[7]);
    let (sps, pps) = (&avcc[8..8 + sps], &avcc[8 + sps + 3..]);
    let mut config = DecoderConfig::new();
    config = config.flush_after_decode(Flush::NoFlush);
    let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), config)?;
    let compare = |picture: &dyn Fn(usize) -> [u8; 3], t: usize| {
        let row: Vec<u8> = (0..width).flat_map(picture).collect();
        worst(&row, 3, width, 1, t)
    };
    let mut found = Vec::new();
    let mut stream = [b"\0\0\0\x01", sps, b"\0\0\0\x01", pps].concat();
    for sample in samples(file) {
        let mut sample = sample;
        while !sample.is_empty() {
            let (unit, rest) = sample[4..].split_at(word(sample, 0) as usize);
            stream.extend_from_slice(b"\0\0\0\x01");
            stream.extend_from_slice(unit);
            sample = rest;
        }
        if let Some(picture) = decoder.decode(&stream)? {
            found.push(compare(&|x| rgb(&picture, x, height / 2), found.len()));
        }
        stream.clear();
    }
    for picture in decoder.flush_remaining()? {
        found.push(compare(&|x| rgb(&picture, x, height / 2), found.len()));
    }
    Ok(found)
}

/// What the eye cannot see; 8-bit limited range alone costs up to 2.
const TOLERANCE: u8 = 3;

#[test]
fn every_frame_reads_back_in_its_colours() -> Result<()> {
    let folder = Scratch::new("mp4");
    let target = folder.target("a.mp4");
    let (width, height, frames) = (272, 34, 50);
    write_clip(&target, width, height, frames, 23.976, false)?;
    let file = std::fs::read(&target.path)?;
    let names: Vec<_> = children(&file).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"ftyp", b"moov", b"free", b"mdat"]);

    let mdhd = find(&file, &[b"moov", b"trak", b"mdia", b"mdhd"]);
    assert_eq!((word(mdhd, 1), word(mdhd, 2)), (0, 0)); // no dates
    assert_eq!((word(mdhd, 3), word(mdhd, 4)), (24000, 50 * 1001));
    let stts = stbl(&file, b"stts");
    assert_eq!([1, 2, 3].map(|i| word(stts, i)), [1, 50, 1001]);
    let stss = stbl(&file, b"stss");
    assert_eq!([1, 2, 3].map(|i| word(stss, i)), [2, 1, 48]); // within two seconds
    assert_eq!(find(avc1(&file), &[b"colr"]), b"nclx\0\x01\0\x01\0\x01\0");
    let avcc = find(avc1(&file), &[b"avcC"]);
    assert_eq!(avcc[1..3], [66, 0xC0]); // Constrained Baseline
    assert!((10..=13).contains(&avcc[3]) && avcc[3] == avcc[11], "level {}", avcc[3]);

    let differences = decoded(&file, width, height)?;
    assert_eq!(differences.len(), frames);
    let worst = differences.into_iter().max().unwrap_or(255);
    assert!(worst <= TOLERANCE, "{worst} > {TOLERANCE}");
    Ok(())
}

#[test]
fn whole_rates_and_single_frames() -> Result<()> {
    let folder = Scratch::new("mp4-short");
    let target = folder.target("a.mp4");
    write_clip(&target, 16, 18, 1, 8.0, false)?;
    let file = std::fs::read(&target.path)?;
    assert_eq!(samples(&file).len(), 1);
    let mdhd = find(&file, &[b"moov", b"trak", b"mdia", b"mdhd"]);
    assert_eq!((word(mdhd, 3), word(mdhd, 4)), (16384, 2048));
    Ok(())
}

#[test]
fn quality_sets_the_quantiser() -> Result<()> {
    assert_eq!([1, 50, 80, 90, 100].map(quantiser), [48, 28, 20, 16, 12]);
    assert!((1..100).all(|quality| quantiser(quality) >= quantiser(quality + 1)));
    let folder = Scratch::new("mp4-quality");
    let size = |quality: u8| -> Result<usize> {
        let target = folder.target(&format!("{quality}.mp4"));
        let mut writer = Writer::create(&target, 64, 48, 8.0, 3, quality, false)?;
        (0..3).try_for_each(|t| writer.push(&noise(64, 48, t)))?;
        writer.finish()?;
        Ok(samples(&std::fs::read(&target.path)?).into_iter().map(<[u8]>::len).sum())
    };
    let sizes = [size(1)?, size(50)?, size(80)?, size(100)?];
    assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    Ok(())
}

#[test]
fn hard_frames_are_never_left_out() -> Result<()> {
    let folder = Scratch::new("mp4-hard");
    let target = folder.target("a.mp4");
    let mut writer = Writer::create(&target, 96, 64, 100.0, 30, 100, false)?;
    (0..30).try_for_each(|t| writer.push(&noise(96, 64, t)))?;
    writer.finish()?;
    let file = std::fs::read(&target.path)?;
    assert_eq!(samples(&file).len(), 30);
    assert_eq!(decoded(&file, 96, 64)?.len(), 30);
    Ok(())
}
