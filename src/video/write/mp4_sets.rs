//! H.264 parameter sets under other numbers, so that those of several sources can stand in one sample description.
//!
//! Some players (Chromium 148 among them) look at a track's first description only. Sets of one number and different
//! contents need a second one.
//! Source: ITU-T H.264, 7.3.1 (units), 7.3.2 (sets), 7.3.3 (slices); ISO/IEC 14496-15, 5.3.3.1 (`avcC`).

use super::bits::{Bits, Out};
use super::mp4_boxes::Entry;
use crate::video::read::sps::{escape, unescape};

pub const SLICE: u8 = 1;
pub const KEY: u8 = 5;
pub const SPS: u8 = 7;
pub const PPS: u8 = 8;

/// The numbers that a stream's sets go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub sps: u32,
    pub pps: u32,
}

/// A parameter set or slice with other numbers in it. Only for slices without arithmetic coding (CAVLC), which can begin at
/// any bit.
/// - `unit`: without a start code. Other kinds come back as they are.
/// - None where it ends too early.
pub fn renumber(unit: &[u8], numbers: Numbers) -> Option<Vec<u8>> {
    let bytes = unescape(unit);
    let mut bits = Bits { bytes: &bytes, at: 8 };
    let values: &[u32] = match bytes.first().map_or(0, |byte| byte & 31) {
        SPS => {
            bits.at = 32; // after profile, constraints and level
            &[numbers.sps]
        }
        PPS => &[numbers.pps, numbers.sps],
        SLICE | KEY => {
            bits.ue()?; // first macroblock
            bits.ue()?; // kind of slice
            &[numbers.pps]
        }
        _ => return Some(unit.to_vec()),
    };
    let mut out = Out::default();
    let mut before = Bits { bytes: &bytes, at: 0 };
    while before.at < bits.at {
        out.push(before.bit()?, 1);
    }
    for &value in values {
        bits.ue()?;
        out.ue(value);
    }
    while !bits.at.is_multiple_of(8) {
        out.push(bits.bit()?, 1);
    }
    out.extend(bytes.get(bits.at / 8..)?.iter().copied());
    let end = out.bytes.iter().rposition(|&byte| byte != 0)?; // the closing 1
    out.bytes.truncate(end + 1);
    Some(escape(&out.bytes))
}

/// The number that a parameter set goes by.
fn number(set: &[u8]) -> Option<u32> {
    let bytes = unescape(set);
    let at = if bytes.first()? & 31 == SPS { 32 } else { 8 };
    Bits { bytes: &bytes, at }.ue()
}

/// The lowest numbers that none of the sets goes by; none where all are taken.
pub fn free(entries: &[Entry]) -> Option<Numbers> {
    let taken = |kind: u8| -> Vec<u32> {
        let parts = entries.iter().filter_map(|entry| Avcc::parse(&entry.avcc));
        let sets = parts.flat_map(|avcc| avcc.sets).flatten();
        sets.filter(|set| set.first().is_some_and(|byte| byte & 31 == kind)).filter_map(|set| number(&set)).collect()
    };
    let (sps, pps) = (taken(SPS), taken(PPS));
    let numbers = Numbers { sps: (0..32).find(|n| !sps.contains(n))?, pps: (0..256).find(|n| !pps.contains(n))? };
    Some(numbers)
}

/// What stands in `avcC`.
struct Avcc {
    profile: u8,
    constraints: u8,
    level: u8,
    /// How many bytes tell a unit's length, and bits that are always set.
    length: u8,
    /// SPS, PPS.
    sets: [Vec<Vec<u8>>; 2],
    /// What High adds.
    tail: Vec<u8>,
}

impl Avcc {
    fn parse(avcc: &[u8]) -> Option<Avcc> {
        let &[1, profile, constraints, level, length, ..] = avcc else { return None };
        let mut rest = &avcc[5..];
        let mut sets = [Vec::new(), Vec::new()];
        for (sets, mask) in sets.iter_mut().zip([31, 255]) {
            let (count, mut tail) = rest.split_first()?;
            for _ in 0..count & mask {
                let (size, after) = tail.split_at_checked(2)?;
                let (set, after) = after.split_at_checked(usize::from(size[0]) << 8 | usize::from(size[1]))?;
                sets.push(set.to_vec());
                tail = after;
            }
            rest = tail;
        }
        Some(Avcc { profile, constraints, level, length: length | 0xFC, sets, tail: rest.to_vec() })
    }

    fn write(&self) -> Vec<u8> {
        let mut out = vec![1, self.profile, self.constraints, self.level, self.length];
        for (sets, bits) in self.sets.iter().zip([0xE0, 0]) {
            out.push(bits | sets.len() as u8);
            for set in sets {
                out.extend_from_slice(&(set.len() as u16).to_be_bytes());
                out.extend_from_slice(set);
            }
        }
        out.extend_from_slice(&self.tail);
        out
    }
}

/// One description for both; none where that cannot be: two sets of one number, lengths told in different ways, colours that
/// the streams do not tell themselves.
pub fn merge(one: &Entry, other: &Entry) -> Option<Entry> {
    if one == other {
        return Some(one.clone());
    }
    if one.format != other.format {
        return None;
    }
    let same = one.colr == other.colr;
    let told = |entry: &Entry| entry.colr.is_none() || entry.tagged;
    let told = same || told(one) && told(other);
    if !told {
        return None;
    }
    let (mut a, b) = (Avcc::parse(&one.avcc)?, Avcc::parse(&other.avcc)?);
    if a.length != b.length || !(a.tail.is_empty() || b.tail.is_empty() || a.tail == b.tail) {
        return None;
    }
    for ((sets, new), most) in a.sets.iter_mut().zip(b.sets).zip([31, 255]) {
        for set in new {
            match sets.iter().find(|old| number(old) == number(&set)) {
                Some(old) if *old == set => {}
                Some(_) => return None,
                None => sets.push(set),
            }
        }
        if sets.len() > most {
            return None;
        }
    }
    let merged = Avcc {
        profile: a.profile.max(b.profile), // 66, 77, 100: each can do what those before it can
        constraints: a.constraints & b.constraints,
        level: a.level.max(b.level),
        tail: if a.tail.is_empty() { b.tail } else { a.tail },
        ..a
    };
    let colr = one.colr.clone().filter(|_| same);
    Some(Entry { format: one.format, avcc: merged.write(), colr, tagged: one.tagged && other.tagged })
}

#[cfg(test)]
mod tests {
    use super::super::mp4_tags::Tags;
    use super::*;

    #[test]
    fn numbers_are_replaced_and_the_rest_is_kept() {
        let slice = [0x65, 0b1110_1010, 0, 0, 3, 1, 0x80]; // macroblock 0, kind 0, set 0, and the rest
        let numbers = Numbers { sps: 4, pps: 2 };
        let moved = renumber(&slice, numbers).expect("a slice");
        assert_eq!(moved, [0x65, 0b1101_1010, 0b1000_0000, 0, 0, 0b0110_0000]); // 011 for 2: two bits more
        assert_eq!(renumber(&moved, Numbers::default()).as_deref(), Some(slice.as_slice()));
        let pps = renumber(&[0x68, 0b1100_1110], numbers).expect("a set");
        assert_eq!((number(&pps), pps), (Some(2), vec![0x68, 0b0110_0101, 0b0011_1000]));
        let sps = renumber(&[0x67, 66, 0xC0, 30, 0b1010_0000], numbers).expect("a set");
        assert_eq!((number(&sps), sps), (Some(4), vec![0x67, 66, 0xC0, 30, 0b0010_1010]));
        assert_eq!(renumber(&[6, 1, 2], numbers), Some(vec![6, 1, 2]));
        assert_eq!(renumber(&[0x65, 0], numbers), None);
    }

    #[test]
    fn sets_of_one_number_stay_apart() {
        let entry = |sps: &[u8], pps: &[u8]| Entry::new(sps, pps, &Tags::bt709());
        let (sps, pps) = ([0x67, 66, 0xC0, 30, 0b1010_0000], [0x68, 0b1100_1110]);
        let one = entry(&sps, &pps);
        assert_eq!(merge(&one, &one), Some(one.clone()));
        assert_eq!(merge(&one, &entry(&[0x67, 66, 0xC0, 31, 0b1010_0000], &pps)), None);
        let numbers = free(std::slice::from_ref(&one)).expect("numbers");
        assert_eq!(numbers, Numbers { sps: 1, pps: 1 });
        let main = [0x67, 77, 0x40, 31, 0b1010_0000];
        let renumbered = |set: &[u8]| renumber(set, numbers).expect("a set");
        let both = merge(&one, &entry(&renumbered(&main), &renumbered(&pps))).expect("one description");
        assert_eq!(both.avcc[..6], [1, 77, 0x40, 31, 0xFF, 0xE2]);
        assert_eq!(free(std::slice::from_ref(&both)), Some(Numbers { sps: 2, pps: 2 }));
        let blind = Entry { colr: Some(b"nclx\0\x06\0\x06\0\x06\0".to_vec()), tagged: false, ..both };
        assert_eq!(merge(&one, &blind), None);
    }
}
