//! What an MP4 says of its colours, in its parameter sets and in its sample description. One file says one thing: a change within
//! it is seen as a jump of colours, or not followed at all.
//! Source: ITU-T H.264, 7.3.2.1.1 and annex E.1.1; ISO/IEC 14496-12, 12.1.5 (`colr`).

use super::bits::{Bits, Out};
use super::colour::Space;
use crate::video::read::sps::{Sps, escape, unescape};
use crate::video::read::yuv;
use anyhow::Result;

/// The colours that a stream tells. Nothing told is something too: readers then assume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// `video_signal_type` of the parameter sets: whether the range is full; primaries, transfer, matrix.
    pub full: Option<bool>,
    pub description: Option<[u8; 3]>,
    /// What the box `colr` holds.
    pub colr: Option<Vec<u8>>,
}

/// Three letters, then primaries, transfer and matrix in two bytes each, then the range.
const BT709_COLR: &[u8] = b"nclx\0\x01\0\x01\0\x01\0";
/// "Not said", of each of the three.
const UNSAID: u8 = 2;

impl Tags {
    /// BT.709 in limited range, as the encoder writes it by itself.
    pub fn bt709() -> Tags {
        Tags { full: Some(false), description: Some([1; 3]), colr: Some(BT709_COLR.to_vec()) }
    }

    /// Reads what a film says.
    /// - `sets`: of one sample description. `colr`: as MP4 has it.
    /// - None where its sets say different things, or cannot be read.
    pub fn of(mut sets: impl Iterator<Item = Result<Sps>>, colr: Option<Vec<u8>>) -> Option<Tags> {
        let first = sets.next()?.ok()?;
        let tags = Tags { full: first.full, description: first.description, colr };
        sets.all(|sps| sps.is_ok_and(|sps| (sps.full, sps.description) == (tags.full, tags.description)))
            .then_some(tags)
    }

    /// Whether the parameter sets tell all that matters, so that the container need not.
    pub fn tell(&self) -> bool {
        self.full.is_some() && self.description.is_some_and(|description| description[2] != UNSAID)
    }

    /// Returns what readers take the stream's numbers for: the sets go before the box, and what neither says goes by the size.
    pub fn space(&self, width: usize, height: usize) -> Space {
        let boxed = |i: usize| self.colr.as_ref().and_then(|colr| colr.get(i)).copied();
        let said = |matrix: &u8| *matrix != UNSAID;
        let matrix = self.description.map(|description| description[2]).filter(said);
        let matrix = matrix.or(boxed(9).filter(said)).unwrap_or_else(|| yuv::untagged(width, height));
        let full = self.full.or(boxed(10).map(|range| range & 128 != 0)).unwrap_or(false);
        Space::new(matrix, full, width, height)
    }

    /// Writes these colours into a parameter set of ours, in place of its own.
    /// - None where it is not one as openh264 makes it, of Baseline with usability information.
    pub fn write(&self, sps: &[u8]) -> Option<Vec<u8>> {
        let bytes = unescape(sps);
        let mut bits = Bits { bytes: &bytes, at: 32 }; // after profile, constraints and level
        bits.ue()?; // its number
        bits.ue()?; // how frames are counted
        match bits.ue()? {
            0 => _ = bits.ue()?,
            2 => {}
            _ => return None,
        }
        bits.ue()?; // references
        bits.bit()?;
        bits.ue()?; // width, height
        bits.ue()?;
        if bits.bit()? == 0 {
            return None; // fields
        }
        bits.bit()?;
        if bits.bit()? == 1 {
            (0..4).try_for_each(|_| bits.ue().map(drop))?; // cropping
        }
        // usability information there, no aspect, nothing on overscan
        if (bits.bit()?, bits.bit()?, bits.bit()?) != (1, 0, 0) {
            return None;
        }
        let start = bits.at;
        if bits.bit()? == 1 {
            bits.at += 4; // format, range
            bits.at += if bits.bit()? == 1 { 24 } else { 0 };
        }
        let (end, length) = (bits.at, 8 * bytes.len());
        let mut out = Out::default();
        let copy = |out: &mut Out, from: usize, to: usize| {
            let mut bits = Bits { bytes: &bytes, at: from };
            while bits.at < to {
                out.push(bits.bit()?, 1);
            }
            Some(())
        };
        copy(&mut out, 0, start)?;
        self.signal(&mut out);
        copy(&mut out, end, length)?;
        let last = out.bytes.iter().rposition(|&byte| byte != 0)?; // the closing 1
        out.bytes.truncate(last + 1);
        Some(escape(&out.bytes))
    }

    /// `video_signal_type_present_flag` and what follows it.
    fn signal(&self, out: &mut Out) {
        let Some(full) = self.full else { return out.push(0, 1) };
        out.push(0b1101, 4); // there; format 5: not said
        out.push(full.into(), 1);
        out.push(self.description.is_some().into(), 1);
        self.description.into_iter().flatten().for_each(|number| out.push(number.into(), 8));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rate;
    use super::super::mp4_encoder::{encoder, units};
    use super::*;
    use crate::video::read::sps::parse;
    use anyhow::Context;
    use openh264::formats::YUVSlices;

    /// One of our encoder's.
    fn parameter_set(width: usize, height: usize) -> Result<Vec<u8>> {
        let (luma, chroma) = (vec![128; width * height], vec![128; width * height / 4]);
        let picture = YUVSlices::new((&luma, &chroma, &chroma), (width, height), (width, width / 2, width / 2));
        let units = units(&encoder(20, Rate::new(8.0)?)?.encode(&picture)?);
        units.into_iter().find(|unit| unit[0] & 31 == 7).context("a parameter set")
    }

    #[test]
    fn a_set_tells_what_it_is_told_to() -> Result<()> {
        let ours = parameter_set(50, 34)?;
        assert_eq!(Tags::bt709().write(&ours), Some(ours.clone())); // what is there already
        let colr = Some(b"nclx\0\x06\0\x06\0\x06\x80".to_vec());
        for (full, description) in
            [(None, None), (Some(true), None), (Some(false), Some([6, 1, 6])), (Some(true), Some([9; 3]))]
        {
            let tags = Tags { full, description, colr: colr.clone() };
            let set = tags.write(&ours).expect("a set");
            let sps = parse(&set)?;
            assert_eq!((sps.width, sps.height, sps.full, sps.description), (50, 34, full, description));
            assert_eq!(Tags::of([Ok(sps)].into_iter(), colr.clone()), Some(tags.clone()));
            assert_eq!(Tags::bt709().write(&set), Some(ours.clone()));
        }
        assert_eq!(Tags::bt709().write(&[0x67, 66, 0xC0, 30, 0b1010_0000]), None);
        Ok(())
    }

    #[test]
    fn what_is_not_said_goes_by_the_box_and_then_by_the_size() {
        let tags = |full, description, colr: Option<&[u8]>| Tags { full, description, colr: colr.map(<[u8]>::to_vec) };
        let space = |matrix, full| Space::new(matrix, full, 0, 0);
        assert_eq!(Tags::bt709().space(64, 48), Space::bt709());
        assert_eq!(tags(None, None, None).space(64, 48), space(6, false));
        assert_eq!(tags(None, None, None).space(1280, 720), space(1, false));
        let colr: &[u8] = b"nclx\0\x09\0\x01\0\x09\x80";
        assert_eq!(tags(None, Some([1, 1, 2]), Some(colr)).space(64, 48), space(9, true));
        assert_eq!(tags(Some(false), Some([1, 1, 1]), Some(colr)).space(64, 48), space(1, false));
        assert!(Tags::bt709().tell() && !tags(Some(true), Some([1, 1, 2]), None).tell());
    }
}
