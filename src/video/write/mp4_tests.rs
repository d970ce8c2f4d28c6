//! Reads back what `mp4` wrote, with a walk over the boxes and openh264's decoder.

use super::super::testing::*;
use super::super::{Target, Writer};
use super::*;
use openh264::OpenH264API;
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

/// The frames that the reader gives, and their times in frames.
fn read_all(target: &Target, fps: f64) -> Result<Vec<Frame>> {
    let mut reader = read::open(&target.path)?;
    let mut frames = Vec::new();
    while let Some(timed) = reader.next()? {
        assert!((timed.start * fps - frames.len() as f64).abs() < 1e-6, "frame {} at {} s", frames.len(), timed.start);
        frames.push(timed.frame);
    }
    assert_eq!(frames.len(), reader.info.frames);
    Ok(frames)
}

fn write_noise(target: &Target, frames: usize, fps: f64) -> Result<()> {
    let mut writer = Writer::create(target, 48, 34, fps, frames, 60, false)?;
    (0..frames).try_for_each(|t| writer.push(&noise(48, 34, t)))?;
    writer.finish()
}

/// Puts clips and new frames into one file, in the order of `parts`, and checks that each comes back: copies to the byte and
/// the pixel, new frames in their colours.
fn joined(folder: &Scratch, name: &str, parts: &[Result<&Target, usize>], expect: bool) -> Result<Vec<u8>> {
    let fps = 23.976;
    let rate = 24000.0 / 1001.0;
    let mut wanted = Vec::new();
    let (mut copies, mut total) = (Vec::new(), 0);
    for part in parts {
        let count = match part {
            Ok(clip) => {
                let frames = read_all(clip, rate)?;
                copies.push((total, std::fs::read(&clip.path)?));
                wanted.extend(frames.iter().cloned().map(Some));
                frames.len()
            }
            Err(count) => {
                wanted.resize(total + count, None);
                *count
            }
        };
        total += count;
    }
    let target = folder.target(name);
    let mut writer = Writer::create(&target, 48, 34, fps, total, 90, false)?;
    if expect {
        parts.iter().flatten().for_each(|clip| writer.expect_clip(&clip.path));
    }
    let mut t = 0;
    for part in parts {
        match part {
            Ok(clip) => {
                assert!(writer.copy_clip(&clip.path)?, "{name}");
                t = wanted.iter().take(t).len() + read::open(&clip.path)?.info.frames;
            }
            Err(count) => {
                (t..t + count).try_for_each(|t| writer.push(&patches(48, 34, t)))?;
                t += count;
            }
        }
    }
    writer.finish()?;
    let file = std::fs::read(&target.path)?;
    for (at, source) in copies {
        for (i, sample) in samples(&source).into_iter().enumerate() {
            assert!(samples(&file)[at + i] == sample, "{name}: sample {i} of the clip at {at}");
        }
    }
    let got = read_all(&target, rate)?;
    assert_eq!(got.len(), total);
    for (t, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        match wanted {
            Some(wanted) => assert!(*got == wanted, "{name}: frame {t} changed"),
            None => {
                let row = &got.rgb[17 * 48 * 3..][..48 * 3];
                assert!(worst(row, 3, 48, 1, t) <= 12, "{name}: frame {t} is {} off", worst(row, 3, 48, 1, t));
            }
        }
    }
    Ok(file)
}

#[test]
fn a_clip_is_copied_before_after_and_between() -> Result<()> {
    let folder = Scratch::new("mp4-copy");
    let (one, two) = (folder.target("one.mp4"), folder.target("two.mp4"));
    write_noise(&one, 53, 23.976)?;
    write_clip(&two, 48, 34, 20, 23.976, false)?;
    let descriptions = |file: &[u8]| word(stbl(file, b"stsd"), 1);
    assert_eq!(descriptions(&joined(&folder, "extended.mp4", &[Ok(&one), Err(30)], false)?), 1);
    assert_eq!(descriptions(&joined(&folder, "before.mp4", &[Err(30), Ok(&one)], true)?), 1);
    let apart = joined(&folder, "apart.mp4", &[Err(30), Ok(&one)], false)?;
    assert_eq!(descriptions(&apart), 2, "{:?}", stbl(&apart, b"stsc"));
    joined(&folder, "bridged.mp4", &[Ok(&one), Err(60), Ok(&two)], true)?;
    joined(&folder, "many.mp4", &[Err(1), Ok(&two), Err(1), Ok(&one), Ok(&two), Err(60)], false)?;
    let again = folder.target("extended.mp4");
    assert_eq!(descriptions(&joined(&folder, "again.mp4", &[Err(2), Ok(&again), Err(5)], true)?), 1);
    let bytes = joined(&folder, "same.mp4", &[Ok(&one), Err(60), Ok(&two)], true)?;
    assert!(bytes == std::fs::read(folder.target("bridged.mp4").path)?);
    Ok(())
}

/// Frames beside samples that tell no colours, or others, tell the same; a clip that tells otherwise is not copied beside them.
#[test]
fn one_file_tells_one_colour() -> Result<()> {
    let folder = Scratch::new("mp4-colours");
    let clip = |name: &str, full, description, colr: Option<&[u8]>| -> Result<Target> {
        let target = folder.target(name);
        let mut mp4 = Mp4::create(&target.path, 48, 34, Rate::new(23.976)?, 5, 90, false)?;
        mp4.settle(Tags { full, description, colr: colr.map(<[u8]>::to_vec) });
        (0..5).try_for_each(|t| mp4.push(&patches(48, 34, t)))?;
        Box::new(mp4).finish()?;
        Ok(target)
    };
    let said = b"nclx\0\x06\0\x06\0\x06\x80";
    let clips = [
        clip("silent.mp4", None, None, None)?,
        clip("range.mp4", Some(false), None, None)?,
        clip("full.mp4", Some(true), Some([1, 1, 1]), None)?,
        clip("boxed.mp4", None, None, Some(said))?,
    ];
    for (i, clip) in clips.iter().enumerate() {
        let colours = |file: &[u8]| -> Vec<u8> {
            let boxes = children(avc1(file)).into_iter();
            boxes.filter(|(name, _)| *name == b"colr").flat_map(|(_, body)| body.to_vec()).collect()
        };
        let file = joined(&folder, &format!("joined{i}.mp4"), &[Ok(clip), Err(6)], true)?;
        assert_eq!(word(stbl(&file, b"stsd"), 1), 1, "{i}");
        assert_eq!(colours(&file), colours(&std::fs::read(&clip.path)?), "{i}");
        let file = joined(&folder, &format!("before{i}.mp4"), &[Err(6), Ok(clip)], true)?;
        assert_eq!(word(stbl(&file, b"stsd"), 1), 1, "{i}");
        let mut writer = Writer::create(&folder.target(&format!("other{i}.mp4")), 48, 34, 23.976, 10, 90, false)?;
        assert!(writer.copy_clip(&clip.path)? && !writer.copy_clip(&clips[(i + 1) % 4].path)?, "{i}");
    }
    Ok(())
}

/// Rewrites a clip's index as if its frames, all key frames, were shown in another order: 0 2 1, 3 5 4, ...
#[test]
fn frames_shown_out_of_order_stay_in_time() -> Result<()> {
    let folder = Scratch::new("mp4-order");
    let plain = folder.target("plain.mp4");
    let mut writer = Writer::create(&plain, 48, 34, 0.5, 9, 90, false)?; // every frame a key frame
    (0..9).try_for_each(|t| writer.push(&patches(48, 34, t)))?;
    writer.finish()?;
    let turned = folder.target("turned.mp4");
    let order = [0, 1, -1].repeat(3);
    let mut file = std::fs::read(&plain.path)?;
    let avcc = find(avc1(&file), &[b"avcC"]).to_vec();
    let size = usize::from(avcc[7]);
    let entries = [Entry::new(&avcc[8..8 + size], &avcc[8 + size + 3..], &Tags::bt709())];
    let sizes: Vec<u32> = samples(&file).iter().map(|sample| sample.len() as u32).collect();
    let data: Vec<u8> = samples(&file).concat();
    let keys: Vec<u32> = (1..=9).collect();
    let track = Track {
        width: 48,
        height: 34,
        clock: Rate::new(0.5)?.clock(),
        entries: &entries,
        parts: &[(9, 0)],
        order: &order,
        lead: 1,
        sizes: &sizes,
        sums: &[],
        keys: &keys,
        chunk: 2,
        start: 0,
    };
    let start = mp4_boxes::header(&track).len() as u64 + 8;
    file = mp4_boxes::header(&Track { start, ..track });
    file.extend_from_slice(&(data.len() as u32 + 8).to_be_bytes());
    file.extend_from_slice(b"mdat");
    file.extend_from_slice(&data);
    std::fs::write(&turned.path, file)?;
    let (plain, turned_frames) = (read_all(&plain, 0.5)?, read_all(&turned, 0.5)?);
    assert!(turned_frames[1] == plain[2] && turned_frames[2] == plain[1] && turned_frames[8] == plain[7]);

    let both = folder.target("both.mp4");
    let mut writer = Writer::create(&both, 48, 34, 0.5, 14, 90, false)?;
    (0..2).try_for_each(|t| writer.push(&patches(48, 34, t)))?;
    assert!(writer.copy_clip(&turned.path)?);
    (11..14).try_for_each(|t| writer.push(&patches(48, 34, t)))?;
    writer.finish()?;
    let file = std::fs::read(&both.path)?;
    let ctts = stbl(&file, b"ctts");
    let frame = Rate::new(0.5)?.clock().1;
    assert_eq!([0, 1, 2, 3, 4, 5].map(|i| word(ctts, i)), [0, 10, 3, frame, 1, 2 * frame]);
    let elst = find(&file, &[b"moov", b"trak", b"edts", b"elst"]);
    assert_eq!([1, 2, 3].map(|i| word(elst, i)), [1, 14 * frame, frame]);
    let frames = read_all(&both, 0.5)?;
    assert_eq!(frames.len(), 14);
    assert!(frames[2..11] == turned_frames[..]);
    let ours = frames.iter().enumerate().filter(|(t, _)| !(2..11).contains(t));
    ours.for_each(|(t, frame)| assert!(worst(&frame.rgb[17 * 144..][..144], 3, 48, 1, t) <= 12, "frame {t}"));
    Ok(())
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_lost() -> Result<()> {
    let folder = Scratch::new("mp4-refuse");
    let clip = folder.target("clip.mp4");
    write_noise(&clip, 5, 24.0)?;
    let (gif, still, cut) = (folder.target("a.gif"), folder.target("none.mp4"), folder.target("cut.mp4"));
    write_clip(&gif, 48, 34, 5, 24.0, false)?;
    let bytes = std::fs::read(&clip.path)?;
    std::fs::write(&cut.path, &bytes[..bytes.len() - 100])?;
    let write = |name: &str, width: usize, fps: f64, sources: &[&Target]| -> Result<Vec<u8>> {
        let target = folder.target(name);
        let mut writer = Writer::create(&target, width, 34, fps, 5, 80, true)?;
        for t in 0..5 {
            for source in sources {
                assert!(!writer.copy_clip(&source.path)?, "{name}");
            }
            writer.push(&patches(width, 34, t))?;
        }
        writer.finish()?;
        Ok(std::fs::read(&target.path)?)
    };
    for (width, fps) in [(50, 24.0), (48, 25.0), (48, 23.976)] {
        assert!(write("a.mp4", width, fps, &[&clip])? == write("b.mp4", width, fps, &[])?);
    }
    assert!(write("a.mp4", 48, 24.0, &[&gif, &still, &cut])? == write("b.mp4", 48, 24.0, &[])?);
    assert!(write("c.gif", 48, 24.0, &[&clip])? == std::fs::read(&gif.path)?);
    let mut writer = Writer::create(&folder.target("full.mp4"), 48, 34, 24.0, 4, 80, false)?;
    assert!(writer.copy_clip(&clip.path).is_err()); // five frames where four go
    Ok(())
}
