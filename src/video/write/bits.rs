//! Bits of H.264's parameter sets, read and written.

/// Reads bit by bit.
pub struct Bits<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl Bits<'_> {
    pub fn bit(&mut self) -> Option<u32> {
        let bit = self.bytes.get(self.at / 8)? >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit.into())
    }

    /// Exponential Golomb.
    pub fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
        }
        let rest = (0..zeros.min(31)).try_fold(0u32, |value, _| Some(value << 1 | self.bit()?))?;
        (zeros < 32).then(|| (1u32 << zeros) - 1 + rest)
    }
}

/// Writes bit by bit.
#[derive(Default)]
pub struct Out {
    pub bytes: Vec<u8>,
    /// Bits of the last byte that are taken; 0 is all.
    taken: u32,
}

impl Out {
    /// - `count`: at most 8.
    pub fn push(&mut self, value: u32, count: u32) {
        for i in (0..count).rev() {
            let bit = (value >> i & 1) as u8;
            match self.bytes.last_mut().filter(|_| self.taken > 0) {
                Some(last) => *last |= bit << (7 - self.taken),
                None => self.bytes.push(bit << 7),
            }
            self.taken = (self.taken + 1) % 8;
        }
    }

    pub fn ue(&mut self, value: u32) {
        let length = 32 - (value + 1).leading_zeros();
        (1..length).for_each(|_| self.push(0, 1));
        (0..length).rev().for_each(|i| self.push((value + 1) >> i & 1, 1));
    }

    /// Whole bytes, shifted to where the last bit ends.
    pub fn extend(&mut self, bytes: impl Iterator<Item = u8>) {
        let taken = self.taken;
        for byte in bytes {
            match self.bytes.last_mut().filter(|_| taken > 0) {
                Some(last) => {
                    *last |= byte >> taken;
                    self.bytes.push(byte << (8 - taken));
                }
                None => self.bytes.push(byte),
            }
        }
    }
}
