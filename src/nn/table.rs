//! Rows that tokens share: shifts, scales and gates.

use super::kernel::product::Gate;
use super::read::Read;
use candle_core::{Result, Tensor, bail};

/// One row for all tokens, or the row that an index names for each.
#[derive(Clone, Debug)]
pub struct Table {
    /// (rows, d)
    pub rows: Tensor,
    /// (tokens), u32; `None`: the first row for all.
    pub index: Option<Tensor>,
}

impl Table {
    /// One row for all tokens.
    /// - `row`: any shape with d elements.
    pub fn one(row: &Tensor) -> Result<Self> {
        Ok(Self { rows: row.flatten_all()?.unsqueeze(0)?.contiguous()?, index: None })
    }

    /// The row of each token: (1, tokens, d), or (1, 1, d) where all share one.
    pub fn each(&self) -> Result<Tensor> {
        match &self.index {
            Some(index) => self.rows.index_select(index, 0)?.unsqueeze(0),
            None => self.rows.narrow(0, 0, 1)?.unsqueeze(0),
        }
    }

    /// Its values on the CPU.
    pub fn read(&self) -> Result<TableRead<'_>> {
        let index = self.index.as_ref().map(Read::new).transpose()?;
        Ok(TableRead { rows: Read::new(&self.rows)?, count: self.rows.dim(0)?, index })
    }
}

/// A table's values, for as long as this lives.
pub struct TableRead<'a> {
    rows: Read<'a>,
    count: usize,
    index: Option<Read<'a>>,
}

impl TableRead<'_> {
    /// - Errors when the table is not `d` wide, or its index is not for `tokens` tokens.
    pub fn gate(&self, d: usize, tokens: usize) -> Result<Gate<'_>> {
        let rows: &[f32] = self.rows.slice()?;
        let index: Option<&[u32]> = self.index.as_ref().map(|r| r.slice()).transpose()?;
        let fits = index.is_none_or(|index| index.len() == tokens && index.iter().all(|&i| (i as usize) < self.count));
        if rows.len() != self.count * d || self.count == 0 || !fits {
            bail!("a table of {} x {} for {tokens} tokens of {d}", self.count, rows.len() / self.count.max(1))
        }
        Ok(Gate { rows, stride: d, index })
    }
}

impl<'a> Gate<'a> {
    /// The row that a token takes.
    pub fn row(&self, token: usize) -> &'a [f32] {
        let row = self.index.map_or(0, |index| index[token] as usize);
        &self.rows[row * self.stride..][..self.stride]
    }
}
