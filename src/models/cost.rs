//! What a network takes while it runs, counted from shapes alone: bytes in use at the most, and operations.

use crate::nn::kernel::memory::taken;
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
