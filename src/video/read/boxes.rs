//! The boxes that MP4 and MOV files are made of, read with every length checked.
//! Source: ISO/IEC 14496-12, 4.2.

use anyhow::{Result, bail, ensure};

/// A box's name.
pub type Name = [u8; 4];

/// Bytes read from the front. Every number is big-endian.
#[derive(Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.0.split_at_checked(n) else { bail!("a box is shorter than what it holds") };
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn name(&mut self) -> Result<Name> {
        self.array()
    }

    /// A full box's version and flags.
    pub fn version(&mut self) -> Result<(u8, u32)> {
        let word = self.u32()?;
        Ok(((word >> 24) as u8, word & 0xFF_FFFF))
    }

    /// A time: 64 bits from version 1 on.
    pub fn time(&mut self, version: u8) -> Result<u64> {
        if version == 0 { self.u32().map(u64::from) } else { self.u64() }
    }

    /// A table's rows of `row` bytes, as many as it says; no more than there are bytes for.
    pub fn rows(&mut self, row: usize) -> Result<impl Iterator<Item = Bytes<'a>> + use<'a>> {
        let count = self.u32()? as usize;
        let Some(length) = count.checked_mul(row).filter(|&n| n <= self.0.len()) else {
            bail!("a table of {count} rows is longer than its box")
        };
        Ok(self.take(length)?.chunks_exact(row.max(1)).map(Bytes))
    }
}

/// Boxes side by side in an index: a track of a thousand has two dozen.
const MOST: usize = 1 << 18;

/// The boxes side by side in `bytes`. Padding shorter than a header ends them; a box that is longer than what is left is
/// an error.
pub fn children(bytes: &[u8]) -> Result<Vec<(Name, &[u8])>> {
    let mut rest = Bytes(bytes);
    let mut found = Vec::new();
    while rest.0.len() >= 8 {
        let size = rest.u32()?;
        let name = rest.name()?;
        let body = match size {
            0 if name == [0; 4] => break, // QuickTime ends some lists with four zero bytes
            0 => rest.0.len() as u64,
            1 => rest.u64()?.saturating_sub(16),
            size => {
                ensure!(size >= 8, "box `{}` has an impossible length", name.escape_ascii());
                u64::from(size) - 8
            }
        };
        ensure!(body <= rest.0.len() as u64, "box `{}` is longer than what holds it", name.escape_ascii());
        ensure!(found.len() < MOST, "there are more than {MOST} boxes in one");
        found.push((name, rest.take(body as usize)?));
    }
    Ok(found)
}

/// The first box of that name.
pub fn child<'a>(bytes: &'a [u8], name: &Name) -> Result<Option<&'a [u8]>> {
    Ok(children(bytes)?.into_iter().find(|(n, _)| n == name).map(|(_, body)| body))
}

/// The first box at the end of that path.
/// - Errors when it is missing.
pub fn descend<'a>(bytes: &'a [u8], path: &[&Name]) -> Result<&'a [u8]> {
    path.iter().try_fold(bytes, |bytes, name| {
        child(bytes, name)?.ok_or_else(|| anyhow::anyhow!("box `{}` is missing", name.escape_ascii()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() -> Result<()> {
        let bytes = b"\0\0\0\x0aabcdXY\0\0\0\x08efgh\0\0";
        let boxes = children(bytes)?;
        assert_eq!(boxes, [(*b"abcd", b"XY".as_slice()), (*b"efgh", b"".as_slice())]);
        assert!(children(b"\0\0\0\x0babcdXY").is_err());
        assert!(children(b"\0\0\0\x07abcd").is_err());
        assert_eq!(children(b"\0\0\0\0abcdXY")?, [(*b"abcd", b"XY".as_slice())]);
        assert_eq!(children(b"\0\0\0\x01abcd\0\0\0\0\0\0\0\x12XY")?, [(*b"abcd", b"XY".as_slice())]);
        assert!(Bytes(b"\xff\xff\xff\xff1234").rows(4).is_err());
        assert_eq!(Bytes(b"\0\0\0\x011234").rows(4)?.count(), 1);
        assert!(descend(bytes, &[b"abcd", b"none"]).is_err());
        Ok(())
    }
}
