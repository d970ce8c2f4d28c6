//! Damage that no header shows: parts of a file that were never written and so are zeros, and values that are no numbers, or
//! become none when they are multiplied. Small models are looked through; of large ones a few places of each tensor are read, and
//! one that looks empty is read whole.

use super::entry::{Entry, Raw};
use super::open::Tensors;
use super::scaled::widened;
use crate::nn::matrix::Kind;
use anyhow::{Result, bail};

/// Bytes of weights that are looked through at once.
const SMALL: usize = 64 << 20;
/// Bytes that are read at each place of a larger tensor, and how many places there are.
const WINDOW: usize = 4096;
const WINDOWS: usize = 3;
/// A tensor is damaged that is zeros for so many bytes at least, which are one part in so many of it. Whole rows of zeros do
/// occur: in embeddings of words that nobody uses, and where small values were rounded to fp8.
const LEAST_ZEROS: usize = 1024;
const PART_OF: usize = 4;

const FIX: &str = "fix: fetch it again and compare its size and SHA-256";

impl Tensors {
    /// Looks at the tensors of these names for what was never written, and for what is no number.
    /// What is part of the program is as good as when it was built.
    pub(super) fn check_numbers(&self, names: &[String]) -> Result<()> {
        if self.entries.values().all(Entry::is_built_in) {
            return Ok(());
        }
        let whole = self.size() <= SMALL;
        for name in names {
            let Some(entry) = self.entries.get(name) else { continue };
            let raw = entry.raw();
            let windows = if whole || !is_matrix(&raw) { vec![(0, raw.bytes.len())] } else { windows(&raw) };
            let empty = |(from, to): &(usize, usize)| to > from && raw.bytes[*from..*to].iter().all(|byte| *byte == 0);
            if is_matrix(&raw) && (whole || windows.iter().any(empty)) {
                let zeros = longest_zeros(raw.bytes);
                if zeros >= LEAST_ZEROS && zeros >= raw.bytes.len() / PART_OF {
                    bail!(
                        "{} is damaged: `{name}` is zeros for {zeros} of its {} bytes\n  {FIX}",
                        self.what(),
                        raw.bytes.len()
                    )
                }
            }
            if !self.is_table(name) && windows.into_iter().any(|window| !are_numbers(&raw, window)) {
                return Err(self.no_numbers(name));
            }
            entry.forget();
        }
        Ok(())
    }

    /// The first tensor with values that are no numbers, as an error; all of them are read, tables of which few rows are read last.
    pub fn find_no_numbers(&self) -> Option<anyhow::Error> {
        let damaged = |(name, entry): (&String, &Entry)| {
            let raw = entry.raw();
            let found = !are_numbers(&raw, (0, raw.bytes.len()));
            entry.forget();
            found.then(|| self.no_numbers(name))
        };
        let of = |tables: bool| self.entries.iter().filter(move |(name, _)| self.is_table(name) == tables);
        of(false).chain(of(true)).find_map(damaged)
    }

    /// Whether few rows of it are read, so that what is no number in the others does no harm.
    fn is_table(&self, name: &str) -> bool {
        self.rules.is_some_and(|rules| rules.tables.contains(&name))
    }

    fn no_numbers(&self, name: &str) -> anyhow::Error {
        anyhow::anyhow!(
            "{} is damaged: `{name}` has values that are no numbers (NaN or infinite)\n  {FIX}",
            self.what()
        )
    }
}

/// Whether it is more than a vector, or a vector of another shape, either of which may well be zeros.
fn is_matrix(raw: &Raw) -> bool {
    raw.shape.iter().filter(|side| **side > 1).count() > 1
}

/// Places in a large tensor: its beginning, its middle and its end.
fn windows(raw: &Raw) -> Vec<(usize, usize)> {
    let unit = match raw.dtype.kind() {
        Some(Kind::QuantType(kind)) => kind.bytes(),
        Some(Kind::Plain(dtype)) => dtype.size_in_bytes(),
        None => 1,
    };
    let size = WINDOW.next_multiple_of(unit).min(raw.bytes.len());
    let last = raw.bytes.len() - size;
    (0..WINDOWS).map(|i| last * i / (WINDOWS - 1) / unit * unit).map(|from| (from, from + size)).collect()
}

/// The longest run of zero bytes.
fn longest_zeros(bytes: &[u8]) -> usize {
    const STEP: usize = 64;
    let (mut longest, mut run) = (0, 0);
    for part in bytes.chunks(STEP) {
        run = if part.iter().all(|byte| *byte == 0) { run + part.len() } else { 0 };
        longest = longest.max(run);
    }
    longest
}

/// Whether all values of a part of a tensor are finite.
fn are_numbers(raw: &Raw, (from, to): (usize, usize)) -> bool {
    const VALUES: usize = 1 << 16;
    let Some(bytes) = raw.bytes.get(from..to) else { return true };
    match raw.dtype.kind() {
        None => true,
        Some(Kind::Plain(dtype)) => bytes
            .chunks(VALUES * dtype.size_in_bytes())
            .all(|bytes| widened(dtype, bytes).is_ok_and(|values| values.iter().all(|x| x.is_finite()))),
        Some(Kind::QuantType(kind)) => bytes.chunks(VALUES / kind.values() * kind.bytes()).all(|bytes| {
            let mut values = vec![0f32; bytes.len() / kind.bytes() * kind.values()];
            kind.decode(bytes, 0, &mut values);
            values.iter().all(|x| x.is_finite())
        }),
    }
}
