//! GGUF files: a header with entries and the tensors' names, shapes, types and places; then the tensors.
//! - Source: ggml `docs/gguf.md`, versions 2 and 3.

use super::entry::{Placed, Type};
use crate::nn::kernel::blocks::QuantType;
use crate::nn::matrix::Kind;
use crate::platform::files::AtomicFile;
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::HashMap;
use std::io::Write;

/// What a file begins with.
pub const MAGIC: &[u8] = b"GGUF";

/// Bytes that tensors begin at multiples of, where the file says nothing else.
const ALIGNMENT: usize = 32;
const LARGEST_ALIGNMENT: usize = 1 << 20;
/// Bytes of a name, at most; dimensions of a tensor, at most; entries of a list that are kept; lists in lists.
const LONGEST_NAME: usize = 512;
const MOST_DIMENSIONS: usize = 4;
const LONGEST_LIST: usize = 64;
/// Bytes of a header, and tensors, at most: a vocabulary of 256,000 words has ten MB.
const LARGEST_HEADER: usize = 128 << 20;
const MOST_TENSORS: u64 = 1 << 16;
const DEEPEST: usize = 8;

/// Under this key and a tensor's name stands the shape that it had before it was reshaped into whole blocks.
/// - Source: city96/ComfyUI-GGUF `loader.py`, `get_orig_shape`, at 795e451.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// ggml's types that are numbers as they are.
const PLAIN: [(u32, Dtype); 8] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

/// ggml's types that there is no reading of here, for errors.
const OTHERS: [(u32, &str); 13] = [
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// Tensors and entries of a file; lists as JSON.
/// - Errors on a file that is cut off or of another version, and on tensors of types that reel does not read.
pub(super) fn read(bytes: &[u8], what: &str) -> Result<(Vec<Placed>, HashMap<String, String>)> {
    let whole = || {
        format!(
            "{what} is not a whole GGUF file ({} bytes)\n  fix: fetch it again and compare its size and SHA-256",
            bytes.len()
        )
    };
    let mut from = Cursor { bytes: &bytes[..bytes.len().min(LARGEST_HEADER)], at: MAGIC.len() };
    let version = from.number::<4>().with_context(whole)?;
    ensure!(
        version == 2 || version == 3,
        "{what} is GGUF of version {version}, and reel reads 2 and 3\n  fix: use a file made after August 2023"
    );
    let header = |from: &mut Cursor| {
        let (tensors, entries) = (from.number::<8>()?, from.number::<8>()?);
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = from.name()?;
            let kind = from.number::<4>()?;
            match from.value(kind, 0)? {
                Value::Null => {}
                Value::String(text) => _ = metadata.insert(key, text),
                other => _ = metadata.insert(key, other.to_string()),
            }
        }
        ensure!(tensors <= MOST_TENSORS, "its header has {tensors} tensors");
        let mut infos = vec![];
        for _ in 0..tensors {
            let name = from.name()?;
            let dimensions = from.number::<4>()? as usize;
            ensure!((0..=MOST_DIMENSIONS).contains(&dimensions), "`{name}` has {dimensions} dimensions");
            let mut shape = (0..dimensions).map(|_| Ok(from.number::<8>()? as usize)).collect::<Result<Vec<_>>>()?;
            shape.reverse(); // the fastest stands first
            infos.push((name, shape, from.number::<4>()? as u32, from.number::<8>()?));
        }
        Ok((infos, metadata))
    };
    let (infos, metadata) = header(&mut from).with_context(whole)?;
    let alignment = metadata.get("general.alignment").map_or(Ok(ALIGNMENT), |text| text.parse());
    let alignment = alignment.ok().filter(|n: &usize| n.is_power_of_two() && *n <= LARGEST_ALIGNMENT);
    let alignment = alignment
        .with_context(|| format!("{what}: `general.alignment` is no power of two up to {LARGEST_ALIGNMENT}"))
        .with_context(whole)?;
    let start = from.at.next_multiple_of(alignment);
    let mut tensors = vec![];
    for (name, mut shape, number, offset) in infos {
        let dtype = type_of(number, &name, what)?;
        let count = shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
        let size = count.and_then(|count| match dtype {
            Type::Plain(dtype) => count.checked_mul(dtype.bitsize() / 8),
            Type::QuantType(kind) => {
                let row = shape.last().copied().unwrap_or(0);
                row.is_multiple_of(kind.values()).then(|| (count / kind.values()).checked_mul(kind.bytes()))?
            }
        });
        let (Some(count), Some(size)) = (count, size) else {
            bail!(
                "{what}: `{name}` has shape {shape:?}, which no {dtype} has\n  fix: fetch the file again, or another one"
            )
        };
        let begin = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let Some((begin, end)) = begin.and_then(|b| Some((b, b.checked_add(size)?))).filter(|r| r.1 <= bytes.len())
        else {
            return Err(anyhow::anyhow!("it ends before the tensor `{name}` does")).with_context(whole);
        };
        let original = metadata.get(&format!("{ORIGINAL_SHAPE}{name}"));
        if let Some(original) = original.and_then(|text| serde_json::from_str::<Vec<usize>>(text).ok()) {
            ensure!(
                original.iter().try_fold(1usize, |n, &side| n.checked_mul(side)) == Some(count),
                "{what}: `{name}` has {count} values, which are not its original shape {original:?}\n  fix: fetch the file again, or another one"
            );
            shape = original;
        }
        tensors.push(Placed { name, dtype, shape, range: (begin, end) });
    }
    Ok((tensors, metadata))
}

fn type_of(number: u32, name: &str, what: &str) -> Result<Type> {
    if let Some(kind) = QuantType::of_number(number) {
        return Ok(Type::QuantType(kind));
    }
    if let Some((_, dtype)) = PLAIN.iter().find(|(n, _)| *n == number) {
        return Ok(Type::Plain(*dtype));
    }
    let known = OTHERS.iter().find(|(n, _)| *n == number).map_or(String::new(), |(_, name)| format!(" ({name})"));
    bail!(
        "{what}: `{name}` is of ggml's type {number}{known}, which reel does not read\n  fix: use a file of Q8_0, Q6_K, Q5_K or Q4_K"
    )
}

/// Reads on through a header.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let part = end.and_then(|end| self.bytes.get(self.at..end)).context("its header ends too early")?;
        self.at += part.len();
        Ok(part)
    }

    /// A number of `N` bytes without a sign.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N as u64)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// A key, or the name of a tensor.
    fn name(&mut self) -> Result<String> {
        let name = self.text()?;
        ensure!(name.len() <= LONGEST_NAME, "its header has a name of {} bytes", name.len());
        Ok(name)
    }

    fn text(&mut self) -> Result<String> {
        let count = self.number::<8>()?;
        Ok(String::from_utf8_lossy(self.take(count)?).trim_end_matches('\0').to_string())
    }

    /// An entry's value; null for long lists, such as vocabularies, and for lists in lists, which are passed over.
    fn value(&mut self, kind: u64, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => self.number::<1>()?.into(),
            1 => (self.number::<1>()? as i8).into(),
            2 => self.number::<2>()?.into(),
            3 => (self.number::<2>()? as i16).into(),
            4 => self.number::<4>()?.into(),
            5 => (self.number::<4>()? as i32).into(),
            6 => (f32::from_bits(self.number::<4>()? as u32) as f64).into(),
            7 => (self.number::<1>()? != 0).into(),
            8 => self.text()?.into(),
            10 => self.number::<8>()?.into(),
            11 => (self.number::<8>()? as i64).into(),
            12 => f64::from_bits(self.number::<8>()?).into(),
            9 => {
                ensure!(depth < DEEPEST, "its header has lists {DEEPEST} deep");
                let (kind, count) = (self.number::<4>()?, self.number::<8>()?);
                let is_kept = depth == 0 && count <= LONGEST_LIST as u64;
                if let (false, Some(size)) = (is_kept, size_of_value(kind)) {
                    self.take(count.checked_mul(size).context("its header has a list without end")?)?;
                    return Ok(Value::Null);
                }
                let mut list = vec![];
                for _ in 0..count {
                    let value = self.value(kind, depth + 1)?;
                    if is_kept {
                        list.push(value);
                    }
                }
                if is_kept { list.into() } else { Value::Null }
            }
            other => bail!("its header has a value of type {other}"),
        })
    }
}

/// Bytes of a value of that type; `None` where they differ.
fn size_of_value(kind: u64) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// One tensor of a file to be written.
pub struct Part {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
}

/// Writes a file; the caller commits it.
/// - `entries`: texts for the header. `bytes`: the bytes of tensor `i`, wanted one after the other.
/// - Errors on types that GGUF does not have, and when the disk fails.
pub fn write(
    file: &AtomicFile,
    entries: &[(&str, &str)],
    parts: &[Part],
    mut bytes: impl FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    const STRING: u32 = 8;
    let mut header = MAGIC.to_vec();
    let number = |header: &mut Vec<u8>, n: usize| header.extend((n as u64).to_le_bytes());
    let text = |header: &mut Vec<u8>, text: &str| {
        number(header, text.len());
        header.extend(text.as_bytes());
    };
    header.extend(3u32.to_le_bytes()); // version
    number(&mut header, parts.len());
    number(&mut header, entries.len());
    for (key, value) in entries {
        text(&mut header, key);
        header.extend(STRING.to_le_bytes());
        text(&mut header, value);
    }
    let mut end = 0;
    let mut sizes = vec![];
    for Part { name, dtype, shape } in parts {
        let (kind, number_of) = match dtype {
            Type::QuantType(kind) => (Some(Kind::QuantType(*kind)), Some(kind.number())),
            Type::Plain(plain) => (dtype.kind(), PLAIN.iter().find(|(_, dtype)| dtype == plain).map(|(n, _)| *n)),
        };
        let (Some(kind), Some(number_of)) = (kind, number_of) else { bail!("GGUF has no type {dtype} (`{name}`)") };
        text(&mut header, name);
        header.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&side| number(&mut header, side));
        header.extend(number_of.to_le_bytes());
        number(&mut header, end);
        sizes.push(kind.size(shape.iter().product()));
        end += sizes[sizes.len() - 1].next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    let mut write = || -> Result<()> {
        let mut out = file.writer()?;
        out.write_all(&header)?;
        for (i, size) in sizes.iter().enumerate() {
            let mut counted = Counted { to: &mut out, count: 0 };
            bytes(i, &mut counted)?;
            ensure!(counted.count == *size, "`{}` has {} bytes of {size}", parts[i].name, counted.count);
            out.write_all(&[0; ALIGNMENT][..size.next_multiple_of(ALIGNMENT) - size])?;
        }
        Ok(out.flush()?)
    };
    write().with_context(|| file.failed())
}

/// Counts what is written.
struct Counted<'a> {
    to: &'a mut dyn Write,
    count: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.count += n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}
