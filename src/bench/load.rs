//! What is timed: the parts of a model, or random weights of their sizes, and in what the CPU multiplies them.

use super::{Cell, Part, Weights};
use crate::models::Config;
use crate::models::bundle::Checkpoint;
use crate::models::sizes::Part as SizedPart;
use crate::models::text::t5::T5Config;
use crate::models::{random, text};
use crate::nn::kernel::blocks::QuantType;
use crate::nn::kernel::{MatmulType, peak};
use crate::nn::path::{Input, Product, ProductPath};
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
    pub int8: bool,
}

impl MathInfo {
    pub fn of(tensors: &Tensors, compute: &Compute) -> Self {
        Self { math: tensors.math(compute.stored), blocks: tensors.mostly(), int8: true }
    }

    /// Whether a CPU multiplies by int8 dot products: only rows that are whole blocks, which nearly all are.
    fn uses_int8(self) -> bool {
        let Self { math, blocks, int8 } = self;
        Product { math, blocks, int8 }.path(Input::CPU) == ProductPath::Int8
    }

    pub fn name(self) -> &'static str {
        match self.math {
            _ if self.uses_int8() => "int8",
            MatmulType::Bf16 => "bf16",
            MatmulType::F32 => "f32",
        }
    }

    pub fn peak(self, threads: usize) -> f64 {
        let int8 = self.uses_int8().then(|| peak::measure_int8(threads)).flatten();
        int8.unwrap_or_else(|| peak::measure(self.math, threads))
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
            let size = cell.random_size(name)?;
            let (vb, math) = random_weights(cell, compute, Some(&text::names::QUANTISING));
            Ok((T5Config::parse(&size.config, name)?, vb, math))
        }
    }
}

/// A network to time.
pub struct Loaded {
    pub config: Config,
    /// Its weights, and those of the VAE that it goes with.
    pub vb: Vars,
    pub vae: Vars,
    pub math: MathInfo,
}

pub fn transformer(cell: &Cell, compute: &Compute) -> Result<Loaded> {
    load(cell, compute, |checkpoint| &checkpoint.transformer)
}

pub fn vae(cell: &Cell, compute: &Compute) -> Result<Loaded> {
    load(cell, compute, |checkpoint| &checkpoint.vae)
}

/// - `which`: of a checkpoint's parts.
fn load(cell: &Cell, compute: &Compute, which: impl Fn(&Checkpoint) -> &Tensors) -> Result<Loaded> {
    match &cell.weights {
        Weights::Model(model) => {
            let checkpoint = checkpoint(cell, model)?;
            let load = |tensors: &Tensors| tensors.load(compute.stored, compute.dtype, &compute.device);
            let tensors = which(&checkpoint);
            let (vb, vae, math) = (load(tensors), load(&checkpoint.vae), MathInfo::of(tensors, compute));
            Ok(Loaded { vb, vae, math, config: checkpoint.config })
        }
        Weights::Random(name) => {
            let size = cell.random_size(name)?;
            let config = Config::with(size.part, &size.config, name)?;
            let rules = (size.part == SizedPart::Transformer).then(|| config.rules());
            let (vb, math) = random_weights(cell, compute, rules);
            Ok(Loaded { config, vae: vb.clone(), vb, math })
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
        MathInfo { math, blocks: quantize, int8: true },
    )
}
