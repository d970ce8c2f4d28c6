//! Where an MP4's samples lie and when they are shown: the tables of `stbl` and the runs of fragments.
//!
//! Counts in a file are promises; nothing is allocated for samples that the file has no bytes for.

use super::boxes::{Bytes, child, children, descend};
use anyhow::{Context, Result, ensure};

/// One coded picture.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder looks for them"))]
pub struct Sample {
    pub offset: u64,
    pub size: u32,
    /// Which sample description, from 0.
    pub entry: usize,
    /// The file says that decoding can start here.
    pub sync: bool,
    /// When it is shown and for how long, in the track's ticks.
    pub shown: i64,
    pub lasts: u32,
}

/// A day and a half at 30 frames a second; 100 bytes of memory each.
const MOST: usize = 4_000_000;

/// `stbl`; empty in a fragmented file.
/// - `length`: the file's, in bytes.
pub fn table(stbl: &[u8], length: u64) -> Result<Vec<Sample>> {
    let mut samples = sizes(stbl, length)?;
    if samples.is_empty() {
        return Ok(samples);
    }
    places(stbl, &mut samples)?;
    times(stbl, &mut samples)?;
    match child(stbl, b"stss")? {
        Some(stss) => {
            let mut b = Bytes(stss);
            b.version()?;
            for mut row in b.rows(4)? {
                if let Some(sample) = samples.get_mut((row.u32()? as usize).wrapping_sub(1)) {
                    sample.sync = true;
                }
            }
        }
        None => samples.iter_mut().for_each(|sample| sample.sync = true),
    }
    Ok(samples)
}

fn sizes(stbl: &[u8], length: u64) -> Result<Vec<Sample>> {
    let sized = |size| Sample { size, ..Sample::default() };
    if let Some(stz2) = child(stbl, b"stz2")? {
        let mut b = Bytes(stz2);
        b.version()?;
        let bits = b.u32()? & 255;
        let count = b.u32()? as usize;
        ensure!(count <= MOST, "there are more than {MOST} samples");
        ensure!(
            matches!(bits, 4 | 8 | 16) && b.0.len() >= count.saturating_mul(bits as usize).div_ceil(8),
            "box `stz2`"
        );
        let size = |i: usize| match bits {
            4 => b.0[i / 2] >> (4 - i % 2 * 4) & 15,
            8 => b.0[i],
            _ => 0,
        };
        let wide = |i: usize| u32::from(b.0[2 * i]) << 8 | u32::from(b.0[2 * i + 1]);
        return Ok((0..count).map(|i| sized(if bits == 16 { wide(i) } else { size(i).into() })).collect());
    }
    let mut b = Bytes(descend(stbl, &[b"stsz"])?);
    b.version()?;
    let size = b.u32()?;
    if size == 0 {
        ensure!(b.0.len() / 4 <= MOST, "there are more than {MOST} samples");
        return b.rows(4)?.map(|mut row| row.u32().map(sized)).collect();
    }
    let count = b.u32()? as usize;
    let fits = count <= MOST && (count as u64).saturating_mul(size.into()) <= length;
    ensure!(fits, "the index promises {count} samples of {size} bytes in a file of {length}");
    Ok(vec![sized(size); count])
}

/// `stsc` tells how many samples a chunk has, `stco` or `co64` where each chunk begins.
fn places(stbl: &[u8], samples: &mut [Sample]) -> Result<()> {
    let (table, width) = match child(stbl, b"co64")? {
        Some(table) => (table, 8),
        None => (descend(stbl, &[b"stco"])?, 4),
    };
    let mut b = Bytes(table);
    b.version()?;
    let chunks = b.rows(width)?;
    let mut b = Bytes(descend(stbl, &[b"stsc"])?);
    b.version()?;
    let mut runs = Vec::new();
    for mut row in b.rows(12)? {
        let (first, each, entry) = (row.u32()?, row.u32()?, row.u32()?);
        ensure!(each > 0 && entry > 0, "box `stsc` holds an empty chunk");
        runs.push((first, each, entry as usize - 1));
    }
    let mut run = 0;
    let mut rest = samples.iter_mut();
    for (i, mut chunk) in chunks.enumerate() {
        while runs.get(run + 1).is_some_and(|next: &(u32, u32, usize)| next.0 as usize <= i + 1) {
            run += 1;
        }
        let &(_, each, entry) = runs.get(run).context("box `stsc` is empty")?;
        let mut at = if width == 8 { chunk.u64()? } else { chunk.u32()?.into() };
        for sample in rest.by_ref().take(each as usize) {
            (sample.offset, sample.entry) = (at, entry);
            at = at.saturating_add(sample.size.into());
        }
    }
    ensure!(rest.next().is_none(), "the index gives no place for some of the samples");
    Ok(())
}

/// `stts` tells how long each sample lasts, `ctts` how much later it is shown than decoded.
fn times(stbl: &[u8], samples: &mut [Sample]) -> Result<()> {
    let runs = |table: &[u8]| -> Result<Vec<(u32, u32)>> {
        let mut b = Bytes(table);
        b.version()?;
        b.rows(8)?.map(|mut row| Ok((row.u32()?, row.u32()?))).collect()
    };
    let mut now: i64 = 0;
    let mut rest = samples.iter_mut();
    let mut last = 0;
    for (count, lasts) in runs(descend(stbl, &[b"stts"])?)? {
        for sample in rest.by_ref().take(count as usize) {
            (sample.shown, sample.lasts) = (now, lasts);
            now += i64::from(lasts); // 10 million times 2^32 fit
        }
        last = lasts;
    }
    for sample in rest {
        (sample.shown, sample.lasts) = (now, last); // a table that is too short goes on as it ends
        now += i64::from(last);
    }
    if let Some(ctts) = child(stbl, b"ctts")? {
        let mut rest = samples.iter_mut();
        for (count, later) in runs(ctts)? {
            // Version 0 has no negative numbers by the standard, and has them in practice.
            rest.by_ref().take(count as usize).for_each(|sample| sample.shown += i64::from(later as i32));
        }
    }
    Ok(())
}

/// What a fragment's samples are where it does not say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults {
    entry: usize,
    lasts: u32,
    size: u32,
    flags: u32,
}

impl Defaults {
    /// From `trex`.
    pub fn find(mvex: &[u8], track: u32) -> Result<Defaults> {
        for (name, body) in children(mvex)? {
            let mut b = Bytes(body);
            if &name == b"trex" && b.version().is_ok() && b.u32()? == track {
                let entry = b.u32()?.saturating_sub(1) as usize;
                return Ok(Defaults { entry, lasts: b.u32()?, size: b.u32()?, flags: b.u32()? });
            }
        }
        Ok(Defaults::default())
    }
}

/// Reads one track's samples out of fragments, in the file's order.
/// - `length`: the file's, in bytes.
pub struct Fragment {
    pub track: u32,
    pub defaults: Defaults,
    pub length: u64,
    /// When the next sample is decoded, in the track's ticks.
    pub now: i64,
    /// Samples of all tracks so far.
    pub counted: usize,
}

impl Fragment {
    /// - `at`: where the fragment (`moof`) begins in the file.
    pub fn append(&mut self, at: u64, moof: &[u8], samples: &mut Vec<Sample>) -> Result<()> {
        let mut after = at; // where the track before this one ended: what offsets count from when nothing is said
        for (name, traf) in children(moof)? {
            if &name == b"traf" {
                after = self.traf(at, after, traf, samples)?;
            }
        }
        Ok(())
    }

    fn traf(&mut self, moof: u64, after: u64, traf: &[u8], samples: &mut Vec<Sample>) -> Result<u64> {
        let mut b = Bytes(descend(traf, &[b"tfhd"])?);
        let (_, flags) = b.version()?;
        let ours = b.u32()? == self.track;
        let mut defaults = self.defaults;
        let base = if flags & 1 != 0 { Some(b.u64()?) } else { None };
        let base = base.unwrap_or(if flags & 0x2_0000 != 0 { moof } else { after });
        if flags & 2 != 0 {
            defaults.entry = b.u32()?.saturating_sub(1) as usize;
        }
        for (flag, value) in [(8, &mut defaults.lasts), (16, &mut defaults.size), (32, &mut defaults.flags)] {
            if flags & flag != 0 {
                *value = b.u32()?;
            }
        }
        if let (true, Some(tfdt)) = (ours, child(traf, b"tfdt")?) {
            let mut b = Bytes(tfdt);
            let (version, _) = b.version()?;
            self.now = i64::try_from(b.time(version)?).unwrap_or(i64::MAX);
        }
        let mut elsewhere = 0;
        let now = if ours { &mut self.now } else { &mut elsewhere };
        let mut at = base;
        for (name, trun) in children(traf)? {
            if &name == b"trun" {
                self.counted = self.counted.saturating_add(Bytes(trun.get(4..).unwrap_or_default()).u32()? as usize);
                ensure!(self.counted <= 4 * MOST, "there are more than {} samples", 4 * MOST);
                at = run(Bytes(trun), base, at, now, defaults, self.length, ours.then_some(&mut *samples))?;
            }
        }
        Ok(at)
    }
}

/// One run of samples that lie side by side. Returns where it ends.
/// - `samples`: none for another track, whose end still matters.
fn run(
    mut b: Bytes,
    base: u64,
    at: u64,
    now: &mut i64,
    defaults: Defaults,
    length: u64,
    mut samples: Option<&mut Vec<Sample>>,
) -> Result<u64> {
    let (_, flags) = b.version()?;
    let count = b.u32()? as usize;
    let mut at = if flags & 1 != 0 { base.saturating_add_signed((b.u32()? as i32).into()) } else { at };
    let first = if flags & 4 != 0 { Some(b.u32()?) } else { None };
    // A sample that takes no room in the run has to take some in the file.
    let room = match defaults.size {
        _ if flags & 0xF00 != 0 => b.0.len() / 4,
        0 => 0,
        size => (length / u64::from(size)) as usize,
    };
    ensure!(count <= room.min(MOST), "a fragment promises {count} samples, more than it has room for");
    for i in 0..count {
        let mut value = |flag, default| if flags & flag != 0 { b.u32() } else { Ok(default) };
        let lasts = value(0x100, defaults.lasts)?;
        let size = value(0x200, defaults.size)?;
        let kind = value(0x400, if i == 0 { first.unwrap_or(defaults.flags) } else { defaults.flags })?;
        let later = value(0x800, 0)? as i32;
        if let Some(samples) = samples.as_deref_mut() {
            ensure!(samples.len() < MOST, "there are more than {MOST} samples");
            let shown = now.saturating_add(later.into());
            let sync = kind & 0x1_0000 == 0;
            samples.push(Sample { offset: at, size, entry: defaults.entry, sync, shown, lasts });
        }
        *now = now.saturating_add(lasts.into());
        at = at.saturating_add(size.into());
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_size(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 8).to_be_bytes(), name.as_slice(), body].concat()
    }

    #[test]
    fn counts_are_held_to_what_a_clip_can_have() {
        let many = (MOST as u32 + 1).to_be_bytes();
        let one_size = [&[0; 4], &[0, 0, 0, 1], many.as_slice()].concat();
        let error = |name, body: &[u8]| sizes(&with_size(name, body), u64::MAX).err().map(|e| e.to_string());
        assert!(error(b"stsz", &one_size).is_some_and(|error| error.contains("promises")));
        let each = [&[0; 8], many.as_slice(), &vec![0; 4 * (MOST + 1)]].concat();
        assert!(error(b"stsz", &each).is_some_and(|error| error.contains("more than")));
        let small = [&[0, 0, 0, 0, 0, 0, 0, 4], many.as_slice(), &vec![0; MOST / 2 + 1]].concat();
        assert!(error(b"stz2", &small).is_some_and(|error| error.contains("more than")));
        let few = [&[0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3], [0x12, 0x30].as_slice()].concat();
        let got =
            sizes(&with_size(b"stz2", &few), 100).map(|samples| samples.iter().map(|s| s.size).collect::<Vec<_>>());
        assert_eq!(got.ok(), Some(vec![1, 2, 3]));
    }

    #[test]
    fn fragments_of_all_tracks_are_counted_together() -> Result<()> {
        // another track's runs of samples that take no room in the file
        let tfhd = with_size(b"tfhd", &[0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0, 1]);
        let trun = with_size(b"trun", &[[0; 4], (MOST as u32).to_be_bytes()].concat());
        let traf = |runs| with_size(b"traf", &[tfhd.clone(), trun.repeat(runs)].concat());
        let fragment = || Fragment { track: 1, defaults: Defaults::default(), length: MOST as u64, now: 0, counted: 0 };
        let mut samples = vec![];
        fragment().append(0, &traf(1), &mut samples)?;
        let error = fragment().append(0, &traf(5), &mut samples).err().context("five runs are read")?;
        assert!(error.to_string().contains("more than") && samples.is_empty(), "{error}");
        Ok(())
    }
}
