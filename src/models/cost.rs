//! What a network takes while it runs, counted from shapes alone: bytes in use at the most, and operations.

use crate::nn::kernel::memory::taken;
use crate::nn::kernel::{int8, row_stride};
use crate::nn::path::{Input, Product};

/// Bytes in use, the most of them at once, and the multiplications that were made meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Count {
    now: u64,
    pub peak: u64,
    /// Multiplications and additions.
    pub operations: u64,
    /// Of these, attention's.
    pub attention: u64,
}

impl Count {
    /// One block more.
    pub fn take(&mut self, bytes: u64) {
        self.now += taken(bytes);
        self.peak = self.peak.max(self.now);
    }

    /// As many bytes more, in blocks that were summed up already.
    pub fn take_blocks(&mut self, bytes: u64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }

    /// One block less, of a size that was taken.
    pub fn give(&mut self, bytes: u64) {
        self.now -= taken(bytes);
    }
}

/// What runs a network: how wide its numbers are, and all else that `nn::path` asks for.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Of activations between operations, in bytes.
    pub activation: u64,
    /// Of what products read.
    pub operand: u64,
    pub input: Input,
    pub product: Product,
}

impl Widths {
    /// - `input`: of every layer. `product`: of most.
    pub fn new(input: Input, product: Product) -> Self {
        let activation = input.dtype.size_in_bytes() as u64;
        Self { activation, operand: product.operand(input), input, product }
    }
}

/// Tokens on their way through a network's layers.
#[derive(Clone, Copy)]
pub struct Tokens {
    pub count: u64,
    pub widths: Widths,
}

impl Tokens {
    /// Rows between operations.
    pub fn rows(self, width: u64) -> u64 {
        taken(self.count * width * self.widths.activation)
    }

    /// Rows that norms and attention hand to products, apart from each other as those read them.
    pub fn read(self, width: u64) -> u64 {
        let Widths { operand, input, .. } = self.widths;
        let row_stride = if input.is_cpu() { row_stride(width as usize, operand as usize) as u64 } else { width };
        taken(self.count * row_stride * operand)
    }

    /// The same, as panels that attention's own products read.
    pub fn packed(self, width: u64) -> u64 {
        taken(self.count * width * self.widths.operand)
    }

    /// Rows that one product hands to another: narrow ones are apart too.
    pub fn handed(self, width: u64) -> u64 {
        if self.widths.operand < self.widths.activation { self.read(width) } else { self.rows(width) }
    }

    /// What a product, or attention of its values, copies of rows that were handed on: those that are not apart.
    pub fn copied(self, width: u64) -> u64 {
        let Widths { operand, activation, input, .. } = self.widths;
        let strided = operand < activation || row_stride(width as usize, operand as usize) as u64 == width;
        if strided || !input.is_cpu() { 0 } else { self.read(width) }
    }

    /// What int8 dot products round of rows that they read.
    pub fn rounded(self, width: u64) -> u64 {
        taken(int8::size(self.count * width))
    }
}
