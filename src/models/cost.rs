//! Counts a network's peak memory and its operations from shapes alone.

use crate::nn::kernel::memory::taken;
use crate::nn::kernel::{int8, row_stride};
use crate::nn::path::{Input, Product};

/// Memory and operations of a network as its layers run.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// Bytes in use.
    now: u64,
    /// The most bytes in use at once.
    pub peak: u64,
    /// Multiplications and additions.
    pub operations: u64,
    /// The part of `operations` that is attention's.
    pub attention: u64,
}

impl Count {
    /// Counts the allocation of a block of `bytes`.
    pub fn take(&mut self, bytes: u64) {
        self.now += taken(bytes);
        self.peak = self.peak.max(self.now);
    }

    /// Counts the allocation of several blocks, given as the sum of what the allocator takes for each.
    pub fn take_blocks(&mut self, bytes: u64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }

    /// Counts the release of a block of `bytes`.
    pub fn give(&mut self, bytes: u64) {
        self.now -= taken(bytes);
    }
}

/// Bytes of a network's numbers, and what `nn::path` needs to choose its kernels.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Bytes of an activation between operations.
    pub activation: u64,
    /// Bytes of an activation as matrix products read it.
    pub operand: u64,
    pub input: Input,
    pub product: Product,
}

impl Widths {
    /// - `input`: that of every layer. `product`: that of most layers.
    pub fn new(input: Input, product: Product) -> Self {
        let activation = input.dtype.size_in_bytes() as u64;
        Self { activation, operand: product.operand(input), input, product }
    }
}

/// Tokens of a network; the methods return bytes that its buffers of (count, width) take from the allocator.
#[derive(Clone, Copy)]
pub struct Tokens {
    pub count: u64,
    pub widths: Widths,
}

impl Tokens {
    /// Returns the bytes of activations between operations.
    pub fn rows(self, width: u64) -> u64 {
        taken(self.count * width * self.widths.activation)
    }

    /// Returns the bytes of rows that norms and attention write for products: in the products' type and with their row stride.
    pub fn read(self, width: u64) -> u64 {
        let Widths { operand, input, .. } = self.widths;
        let row_stride = if input.is_cpu() { row_stride(width as usize, operand as usize) as u64 } else { width };
        taken(self.count * row_stride * operand)
    }

    /// Returns the bytes of rows repacked into the panels that attention's products read.
    pub fn packed(self, width: u64) -> u64 {
        taken(self.count * width * self.widths.operand)
    }

    /// Returns the bytes of rows that one product writes for another: as [`Tokens::read`] where that type is narrower, else as
    /// [`Tokens::rows`].
    pub fn handed(self, width: u64) -> u64 {
        if self.widths.operand < self.widths.activation { self.read(width) } else { self.rows(width) }
    }

    /// Returns the bytes of the padded copy that a product, or attention's values, needs of [`Tokens::handed`] rows; 0 for none.
    pub fn copied(self, width: u64) -> u64 {
        let Widths { operand, activation, input, .. } = self.widths;
        let strided = operand < activation || row_stride(width as usize, operand as usize) as u64 == width;
        if strided || !input.is_cpu() { 0 } else { self.read(width) }
    }

    /// Returns the bytes of rows quantised to int8 for dot products.
    pub fn rounded(self, width: u64) -> u64 {
        taken(int8::size(self.count * width))
    }
}
