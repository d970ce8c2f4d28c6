//! The table by which SentencePiece replaces characters before it looks for pieces.

use anyhow::{Context, Result, ensure};

/// Checks that no text can lead the normaliser out of its tables: `spm_precompiled` follows them
/// unchecked, so that a damaged file would end the program in the middle of a prompt.
/// - Returns the bytes of the longest text that a character is replaced by.
/// - `map`: the size in bytes of a double-array trie, its units (u32, all little-endian), then the
///   replacements, each ended by 0, which the trie's leaves point into.
/// - Source: sentencepiece `third_party/darts_clone/darts.h`, which makes units in blocks of 256, so
///   that a step by one byte (an xor) stays in its block.
pub fn check(map: &[u8]) -> Result<usize> {
    let parts = map
        .split_first_chunk()
        .and_then(|(size, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?));
    let (trie, texts) = parts.context("its charsmap ends too early")?;
    let texts = std::str::from_utf8(texts).context("its charsmap is damaged")?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|unit| unit.iter().rev().fold(0, |bits, &b| bits << 8 | u32::from(b))).collect();
    let sound = |(i, &unit): (usize, &u32)| {
        if i > 0 && unit >> 31 == 1 {
            return true; // a value; only a step's label is followed
        }
        let child = i ^ ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize;
        let Some(value) = units.get(child) else {
            return false;
        };
        let leaf = unit >> 8 & 1 == 1;
        !leaf || texts.is_char_boundary((value & 0x7fff_ffff) as usize)
    };
    let blocks = !trie.is_empty() && trie.len().is_multiple_of(4 * 256);
    ensure!(blocks && units.iter().enumerate().all(sound), "its charsmap is damaged");
    Ok(texts.split('\0').map(str::len).max().unwrap_or(0))
}
