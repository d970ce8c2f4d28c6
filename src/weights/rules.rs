//! What the caller says of a part's tensors by their names, so that nothing here has to know a family's: which of them become
//! blocks, how they are called elsewhere, and how they are written.

use crate::nn::kernel::blocks::QuantType;

/// Which tensors of a part are quantised, and how they are read. Names are told by what stands in them.
pub struct Rules {
    /// Where the layers lie, whose matrices become blocks.
    pub layers: &'static str,
    /// What in the layers is no matrix to multiply by.
    pub not: &'static [&'static str],
    /// Of the layers' matrices those that are kept finer than the rest: in Q8_0 where the rest is Q4_K, and as they are where it
    /// is Q8_0. Their blocks are never multiplied by int8 dot products.
    pub fine: &'static [&'static str],
    /// Whether the blocks of the others may be multiplied by int8 dot products, where those are faster.
    pub int8: bool,
    /// Whole names of tables of which few rows are read: what is no number in one does no harm.
    pub tables: &'static [&'static str],
}

impl Rules {
    /// What the matrix of that name becomes where the layers become `kind`; `None`: it stays as it is.
    pub fn becomes(&self, name: &str, kind: QuantType) -> Option<QuantType> {
        match kind {
            _ if !self.is_layer(name) => None,
            _ if !self.is_fine(name) => Some(kind),
            QuantType::Q8_0 => None,
            _ => Some(QuantType::Q8_0),
        }
    }

    /// Whether the tensor of that name, if it is a matrix, is one of the large ones.
    pub fn is_layer(&self, name: &str) -> bool {
        name.ends_with(".weight") && name.contains(self.layers) && !self.not.iter().any(|part| name.contains(part))
    }

    /// Whether the blocks of that tensor are dequantised to be multiplied, even where int8 dot products are faster.
    pub fn dequantised(&self, name: &str) -> bool {
        (!self.int8 && name.contains(self.layers)) || self.is_fine(name)
    }

    fn is_fine(&self, name: &str) -> bool {
        self.fine.iter().any(|part| name.contains(part))
    }
}

/// How a part is written to a GGUF file of its own.
#[derive(Clone)]
pub struct GgufForm {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// JSON for the header: what tells the part's sizes.
    pub config: String,
    /// The names that other programs know the tensors by; and back.
    pub rename: fn(&str) -> String,
    pub back: fn(&str) -> String,
}

/// How a family's layers are called by others than diffusers.
#[derive(Clone, Copy)]
pub struct LayerNames {
    /// What LoRAs have to be of, for errors: a family and its releases.
    pub family: &'static str,
    /// From diffusers' name to that of the model's makers.
    pub to_official: fn(&str) -> String,
    /// And back.
    pub from_official: fn(&str) -> String,
}
