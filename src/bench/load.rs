//! What is timed: the parts of a model, or random weights of their sizes, and in what the CPU multiplies them.

use super::{Cell, Part, Weights, random_size};
use crate::job::geometry::Geometry;
use crate::models::bundle::Checkpoint;
use crate::models::ltx::config::{TransformerConfig, VaeConfig};
use crate::models::text::t5::T5Config;
use crate::models::{ltx, random, text};
use crate::nn::kernel::blocks::QuantType;
use crate::nn::kernel::{MatmulType, int8, peak};
use crate::nn::vars::Vars;
use crate::platform::device::{Compute, Quantize};
use crate::weights::open::Tensors;
use crate::weights::rules::Rules;
use anyhow::Result;
use candle_core::DType;

/// In what most products are made.
#[derive(Clone, Copy)]
pub struct MathInfo {
    pub math: MatmulType,
    /// Of most weights.
    pub blocks: Option<QuantType>,
    /// Whether blocks may be multiplied by int8 dot products.
    pub whole: bool,
}

impl MathInfo {
    pub fn of(tensors: &Tensors, compute: &Compute) -> Self {
        Self { math: tensors.math(compute.stored), blocks: tensors.mostly(), whole: true }
    }

    /// Whether a CPU multiplies by int8 dot products: only rows that are whole blocks, which nearly all are.
    fn uses_int8(self) -> bool {
        self.whole && self.math == MatmulType::Bf16 && self.blocks.is_some_and(|kind| int8::fits(kind, kind.values()))
    }

    pub fn name(self) -> &'static str {
        match self.math {
            _ if self.uses_int8() => "int8",
            MatmulType::Bf16 => "bf16",
            MatmulType::F32 => "f32",
        }
    }

    pub fn peak(self, threads: usize) -> f64 {
        let whole = self.uses_int8().then(|| peak::measure_int8(threads)).flatten();
        whole.unwrap_or_else(|| peak::measure(self.math, threads))
    }
}

/// The configuration of one part, its weights, and in what the CPU multiplies them.
pub fn text(cell: &Cell, compute: &Compute) -> Result<(T5Config, Vars, MathInfo)> {
    match &cell.weights {
        Weights::Model(model) => {
            let (config, tensors) = checkpoint(cell, model)?.text;
            Ok((config, tensors.load(compute.stored, compute.dtype, &compute.device), MathInfo::of(&tensors, compute)))
        }
        Weights::Random(name) => {
            let config = cell.random_config(name)?;
            let (vb, math) = random_weights(cell, compute, Some(&text::names::QUANTISING));
            Ok((T5Config::parse(&config, name)?, vb, math))
        }
    }
}

pub fn transformer(cell: &Cell, compute: &Compute) -> Result<(TransformerConfig, Vars, Geometry, MathInfo)> {
    match &cell.weights {
        Weights::Model(model) => {
            let checkpoint = checkpoint(cell, model)?;
            let geometry = checkpoint.geometry();
            let (config, tensors) = checkpoint.transformer;
            let vb = tensors.load(compute.stored, compute.dtype, &compute.device);
            Ok((config, vb, geometry, MathInfo::of(&tensors, compute)))
        }
        Weights::Random(name) => {
            let config = cell.random_config(name)?;
            let (vb, math) = random_weights(cell, compute, Some(&ltx::names::QUANTISING));
            Ok((TransformerConfig::parse(&config, name)?, vb, Geometry { time: 8, space: 32 }, math)) // of all VAEs
        }
    }
}

pub fn vae(cell: &Cell, compute: &Compute) -> Result<(VaeConfig, Vars, Geometry, MathInfo)> {
    match &cell.weights {
        Weights::Model(model) => {
            let checkpoint = checkpoint(cell, model)?;
            let geometry = checkpoint.geometry();
            let (config, tensors) = checkpoint.vae;
            let vb = tensors.load(compute.stored, compute.dtype, &compute.device);
            Ok((config, vb, geometry, MathInfo::of(&tensors, compute)))
        }
        Weights::Random(name) => {
            let config = VaeConfig::parse(&random_size(name)?.1, name)?;
            let [time, space, _] = config.strides();
            let (vb, math) = random_weights(cell, compute, None);
            Ok((config, vb, Geometry { time, space }, math))
        }
    }
}

fn checkpoint(cell: &Cell, model: &str) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(&cell.sources(model))?;
    if cell.part == Part::Encode {
        checkpoint.check_encoder()?;
    }
    Ok(checkpoint)
}

/// - `rules`: which of the part's matrices are quantised, where any are.
fn random_weights(cell: &Cell, compute: &Compute, rules: Option<&'static Rules>) -> (Vars, MathInfo) {
    let stored = compute.stored.unwrap_or(DType::BF16); // as released
    let math = if stored == DType::BF16 { MatmulType::Bf16 } else { MatmulType::F32 };
    let quantize = cell.quantize.map(Quantize::blocks);
    (
        random::weights(stored, quantize.zip(rules), compute.dtype, &compute.device),
        MathInfo { math, blocks: quantize, whole: true },
    )
}
