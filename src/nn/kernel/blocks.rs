//! ggml's block formats: a row of a matrix is cut into blocks of 32 or 256 values, each a few bits a value with scales of its
//! own. Here are their sizes and how values are read out of them; nothing wider than a few values is ever kept.

use crate::platform::device::Quantize;

impl Quantize {
    /// What matrices become.
    pub fn blocks(self) -> QuantType {
        match self {
            Quantize::Q8 => QuantType::Q8_0,
            Quantize::Q4 => QuantType::Q4K,
        }
    }
}

/// The formats that weights are found in.
/// - Source: ggml `src/ggml-common.h` (layouts), `src/ggml-quants.c` (`dequantize_row_*`), at master of 2025.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

/// Values that are read out together; every format's scales hold for this many or for half of them.
pub const GROUP: usize = 32;

struct Facts {
    name: &'static str,
    /// ggml's number of the type in files.
    number: u32,
    values: usize,
    bytes: usize,
}

impl QuantType {
    pub const ALL: [QuantType; 11] = [
        QuantType::Q4_0,
        QuantType::Q4_1,
        QuantType::Q5_0,
        QuantType::Q5_1,
        QuantType::Q8_0,
        QuantType::Q2K,
        QuantType::Q3K,
        QuantType::Q4K,
        QuantType::Q5K,
        QuantType::Q6K,
        QuantType::Q8K,
    ];

    const fn facts(self) -> Facts {
        let (name, number, values, bytes) = match self {
            QuantType::Q4_0 => ("Q4_0", 2, 32, 18),
            QuantType::Q4_1 => ("Q4_1", 3, 32, 20),
            QuantType::Q5_0 => ("Q5_0", 6, 32, 22),
            QuantType::Q5_1 => ("Q5_1", 7, 32, 24),
            QuantType::Q8_0 => ("Q8_0", 8, 32, 34),
            QuantType::Q2K => ("Q2_K", 10, 256, 84),
            QuantType::Q3K => ("Q3_K", 11, 256, 110),
            QuantType::Q4K => ("Q4_K", 12, 256, 144),
            QuantType::Q5K => ("Q5_K", 13, 256, 176),
            QuantType::Q6K => ("Q6_K", 14, 256, 210),
            QuantType::Q8K => ("Q8_K", 15, 256, 292),
        };
        Facts { name, number, values, bytes }
    }

    /// As ggml writes it: `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// The type of that number in files.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.facts().number == number)
    }

    /// ggml's number of the type in files.
    pub const fn number(self) -> u32 {
        self.facts().number
    }

    /// Values of a block.
    pub const fn values(self) -> usize {
        self.facts().values
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        self.facts().bytes
    }

    /// Bytes that so many values take, which are whole blocks.
    pub const fn size(self, values: usize) -> usize {
        values / self.values() * self.bytes()
    }

    /// Reads `count` values from value `at` on and hands them over in runs of at most [`GROUP`]: where a run begins among
    /// them, and its values. Bit for bit what ggml makes of them.
    #[inline(always)]
    pub fn read(self, bytes: &[u8], at: usize, count: usize, run: impl FnMut(usize, &[f32])) {
        match self {
            QuantType::Q4_0 => each::<18, 1>(bytes, at, count, q4_0, run),
            QuantType::Q4_1 => each::<20, 1>(bytes, at, count, q4_1, run),
            QuantType::Q5_0 => each::<22, 1>(bytes, at, count, q5_0, run),
            QuantType::Q5_1 => each::<24, 1>(bytes, at, count, q5_1, run),
            QuantType::Q8_0 => each::<34, 1>(bytes, at, count, q8_0, run),
            QuantType::Q2K => each::<84, 8>(bytes, at, count, q2k, run),
            QuantType::Q3K => each::<110, 8>(bytes, at, count, q3k, run),
            QuantType::Q4K => each::<144, 8>(bytes, at, count, q4k, run),
            QuantType::Q5K => each::<176, 8>(bytes, at, count, q5k, run),
            QuantType::Q6K => each::<210, 8>(bytes, at, count, q6k, run),
            QuantType::Q8K => each::<292, 8>(bytes, at, count, q8k, run),
        }
    }

    /// Reads the values from value `at` on into `out`.
    pub fn decode(self, bytes: &[u8], at: usize, out: &mut [f32]) {
        let count = out.len();
        self.read(bytes, at, count, |i, run| out[i..][..run.len()].copy_from_slice(run));
    }
}

/// The values of one group.
type Group = [f32; GROUP];

/// Walks over groups of blocks of `BYTES` bytes with `GROUPS` groups each.
#[inline(always)]
fn each<const BYTES: usize, const GROUPS: usize>(
    bytes: &[u8],
    at: usize,
    count: usize,
    read: impl Fn(&[u8; BYTES], usize, &mut Group),
    mut run: impl FnMut(usize, &[f32]),
) {
    let mut values = [0f32; GROUP];
    let mut done = 0;
    while done < count {
        let group = (at + done) / GROUP;
        let skipped = (at + done) % GROUP;
        let block: &[u8; BYTES] = part(bytes, group / GROUPS * BYTES);
        read(block, group % GROUPS, &mut values);
        let n = (GROUP - skipped).min(count - done);
        match n {
            GROUP => run(done, &values),
            _ => run(done, &values[skipped..][..n]),
        }
        done += n;
    }
}

/// `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().expect("a row is whole blocks")
}

/// The half-precision number at `at`: without branches and without subnormal f32, which are slow.
#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]) as u32;
    let (exponent, fraction) = (bits & 0x7c00, bits & 0x03ff);
    let size = match exponent {
        0 => fraction as f32 * f32::from_bits(0x3380_0000), // 2^-24
        0x7c00 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(((bits & 0x7fff) << 13) + (112 << 23)),
    };
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

#[inline(always)]
fn q4_0(block: &[u8; 18], _: usize, out: &mut Group) {
    let (d, q) = (half(block, 0), part::<16>(block, 2));
    for i in 0..16 {
        out[i] = ((q[i] & 15) as i32 - 8) as f32 * d;
        out[i + 16] = ((q[i] >> 4) as i32 - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], _: usize, out: &mut Group) {
    let (d, m, q) = (half(block, 0), half(block, 2), part::<16>(block, 4));
    for i in 0..16 {
        out[i] = (q[i] & 15) as f32 * d + m;
        out[i + 16] = (q[i] >> 4) as f32 * d + m;
    }
}

/// The fifth bits of 32 values.
#[inline(always)]
fn fifth(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*part(block, at))
}

#[inline(always)]
fn q5_0(block: &[u8; 22], _: usize, out: &mut Group) {
    let (d, high, q) = (half(block, 0), fifth(block, 2), part::<16>(block, 6));
    for i in 0..16 {
        out[i] = ((q[i] & 15) as i32 + ((high >> i & 1) << 4) as i32 - 16) as f32 * d;
        out[i + 16] = ((q[i] >> 4) as i32 + ((high >> (i + 16) & 1) << 4) as i32 - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], _: usize, out: &mut Group) {
    let (d, m, high, q) = (half(block, 0), half(block, 2), fifth(block, 4), part::<16>(block, 8));
    for i in 0..16 {
        out[i] = ((q[i] & 15) as u32 + ((high >> i & 1) << 4)) as f32 * d + m;
        out[i + 16] = ((q[i] >> 4) as u32 + ((high >> (i + 16) & 1) << 4)) as f32 * d + m;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], _: usize, out: &mut Group) {
    let (d, q) = (half(block, 0), part::<32>(block, 2));
    for i in 0..GROUP {
        out[i] = q[i] as i8 as f32 * d;
    }
}

#[inline(always)]
fn q2k(block: &[u8; 84], group: usize, out: &mut Group) {
    let q = part::<32>(block, 16 + group / 4 * 32);
    let shift = 2 * (group % 4);
    let (d, min) = (half(block, 80), half(block, 82));
    for side in 0..2 {
        let scale = block[2 * group + side];
        let (d, m) = (d * (scale & 15) as f32, min * (scale >> 4) as f32);
        for i in side * 16..side * 16 + 16 {
            out[i] = d * (q[i] >> shift & 3) as f32 - m;
        }
    }
}

#[inline(always)]
fn q3k(block: &[u8; 110], group: usize, out: &mut Group) {
    let (high, q) = (part::<32>(block, 0), part::<32>(block, 32 + group / 4 * 32));
    let scales = part::<12>(block, 96);
    let shift = 2 * (group % 4);
    let d = half(block, 108);
    for side in 0..2 {
        let s = 2 * group + side;
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let scale = low | (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4;
        let d = d * (scale as i32 - 32) as f32;
        for i in side * 16..side * 16 + 16 {
            let missing = 4 - 4 * (high[i] >> group & 1) as i32;
            out[i] = d * ((q[i] >> shift & 3) as i32 - missing) as f32;
        }
    }
}

/// Scales and minima of the eight groups of Q4_K and Q5_K, six bits each.
#[inline(always)]
pub(super) fn six_bits(x: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([x[i], x[i + 1], x[i + 2], x[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let join = |low: u32, high: u32| {
        let mut all = [0; 8];
        all[..4].copy_from_slice(&low.to_le_bytes());
        all[4..].copy_from_slice(&high.to_le_bytes());
        all
    };
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let scales = join(a & six, (c & four) | (a >> 2 & two));
    let minima = join(b & six, (c >> 4 & four) | (b >> 2 & two));
    (scales, minima)
}

#[inline(always)]
fn q4k(block: &[u8; 144], group: usize, out: &mut Group) {
    let (scales, minima) = six_bits(part(block, 4));
    let (d, m) = (half(block, 0) * scales[group] as f32, half(block, 2) * minima[group] as f32);
    let q = part::<32>(block, 16 + group / 2 * 32);
    let shift = 4 * (group % 2);
    for i in 0..GROUP {
        out[i] = d * (q[i] >> shift & 15) as f32 - m;
    }
}

#[inline(always)]
fn q5k(block: &[u8; 176], group: usize, out: &mut Group) {
    let (scales, minima) = six_bits(part(block, 4));
    let (d, m) = (half(block, 0) * scales[group] as f32, half(block, 2) * minima[group] as f32);
    let (high, q) = (part::<32>(block, 16), part::<32>(block, 48 + group / 2 * 32));
    let shift = 4 * (group % 2);
    for i in 0..GROUP {
        out[i] = d * ((q[i] >> shift & 15) + ((high[i] >> group & 1) << 4)) as f32 - m;
    }
}

#[inline(always)]
fn q6k(block: &[u8; 210], group: usize, out: &mut Group) {
    let (side, quarter) = (group / 4, group % 4);
    let low = part::<32>(block, side * 64 + quarter % 2 * 32);
    let high = part::<32>(block, 128 + side * 32);
    let d = half(block, 208);
    let (low_shift, high_shift) = (quarter / 2 * 4, 2 * quarter);
    for half in 0..2 {
        let d = d * block[192 + 2 * group + half] as i8 as f32;
        for i in half * 16..half * 16 + 16 {
            let q = low[i] >> low_shift & 15 | (high[i] >> high_shift & 3) << 4;
            out[i] = d * (q as i32 - 32) as f32;
        }
    }
}

#[inline(always)]
fn q8k(block: &[u8; 292], group: usize, out: &mut Group) {
    let d = f32::from_le_bytes(*part(block, 0));
    let q = part::<32>(block, 4 + group * 32);
    for i in 0..GROUP {
        out[i] = q[i] as i8 as f32 * d;
    }
}

#[cfg(test)]
mod tests;
