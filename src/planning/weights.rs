//! What weights take in memory once they are loaded, from file headers or, for a model that is not here, from its sizes.

use crate::hub::catalogue::{self, Entry};
use crate::models::Config;
use crate::models::UpscalerConfig;
use crate::models::bundle::Checkpoint;
use crate::models::networks::{Decoder, Encoder, Transformer};
use crate::models::text;
use crate::models::text::t5::{T5, T5Config};
use crate::nn::kernel::MatmulType;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::paired;
use crate::nn::path::Product;
use crate::nn::vars::{Source, Vars};
use crate::planning::work::product_of;
use crate::platform::device::Compute;
use crate::platform::machine::free_disk;
use crate::weights::open::{SMALL, Tensors};
use crate::weights::rules::Rules;
use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Bytes of a network's weights: those of each layer that can be read by itself, and of all else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    pub layers: Vec<u64>,
    pub rest: u64,
}

impl Weights {
    pub fn total(&self) -> u64 {
        self.rest + self.layers.iter().sum::<u64>()
    }

    /// With only the first `resident` layers in memory, and one more while it is at work.
    pub fn with_layers(&self, resident: usize) -> u64 {
        let resident = resident.min(self.layers.len());
        let passing = self.layers[resident..].iter().max().copied().unwrap_or(0);
        self.rest + self.layers[..resident].iter().sum::<u64>() + passing
    }

    /// Of a text encoder that is here.
    pub fn of_text(tensors: &Tensors, layers: usize, compute: &Compute) -> Self {
        Self::sort(tensors.kept_bytes(compute.stored, compute.dtype), TEXT_LAYERS, layers, "")
    }

    /// So many bytes, all of them in layers of one size.
    pub fn even(bytes: u64, layers: usize) -> Self {
        Self { layers: vec![bytes / layers.max(1) as u64; layers], rest: 0 }
    }

    /// - `prefix`: what stands before a layer's number, and how many layers there are: weights of others are never read.
    ///   `within`: only weights below this prefix count.
    fn sort<'a>(kept: impl Iterator<Item = (&'a str, u64)>, prefix: &str, layers: usize, within: &str) -> Self {
        let mut all = Self { layers: vec![0; layers], rest: 0 };
        for (name, bytes) in kept.filter(|(name, _)| name.starts_with(within)) {
            if text::names::WORDS.contains(&name) {
                continue; // it is left where it lies, and few of its rows are ever looked at
            }
            let number = name.strip_prefix(prefix).and_then(|rest| rest.split('.').next());
            match number.and_then(|number| number.parse::<usize>().ok()).filter(|_| !prefix.is_empty()) {
                Some(i) => all.layers.get_mut(i).into_iter().for_each(|layer| *layer += bytes),
                None => all.rest += bytes,
            }
        }
        all
    }
}

/// What stands before a layer's number in the text encoder.
const TEXT_LAYERS: &str = "encoder.block.";

/// A model as plans see it.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub config: Config,
    pub transformer: Weights,
    pub text: (T5Config, Weights),
    pub encoder: Weights,
    pub decoder: Weights,
    /// Between two passes, where there are two: the upscaler's sizes, and bytes of its weights.
    pub upscaler: Option<(UpscalerConfig, u64)>,
    /// The text encoder that was chosen, and why, where none was named.
    pub text_encoder: Option<String>,
    /// Where the transformer may be kept quantised while the program runs, where it is quantised as it is loaded.
    pub scratch: Option<PathBuf>,
    /// Whether the transformer is quantised as it is loaded, and kept nowhere.
    pub quantised_anew: bool,
    /// Whether each network stays in memory when its stage is over.
    pub kept: bool,
    pub products: Products,
}

/// How products are computed in each network.
#[derive(Clone, Copy, Debug)]
pub struct Products {
    pub transformer: Product,
    pub text: Product,
    pub vae: Product,
}

impl Model {
    /// Of files that are here.
    pub fn of(checkpoint: &Checkpoint, compute: &Compute) -> Self {
        let kept = |tensors: &Tensors, prefix: &str, layers: usize, within: &str| {
            Weights::sort(tensors.kept_bytes(compute.stored, compute.dtype), prefix, layers, within)
        };
        let Checkpoint { config, transformer, text, vae, .. } = checkpoint;
        Self {
            name: checkpoint.name.clone(),
            config: config.clone(),
            transformer: kept(transformer, config.block_prefix(), config.blocks(), ""),
            text: (text.0.clone(), Weights::of_text(&text.1, text.0.layers, compute)),
            encoder: kept(vae, "", 0, "encoder."),
            decoder: kept(vae, "", 0, "decoder."),
            upscaler: None,
            text_encoder: None,
            scratch: transformer.scratch().map(Path::to_path_buf),
            kept: false,
            quantised_anew: transformer.quantized_count() > 0 && !transformer.is_cached(),
            products: Products {
                transformer: product_of(transformer, compute, true),
                text: product_of(&text.1, compute, false),
                vae: product_of(vae, compute, false),
            },
        }
    }

    /// Of a catalogue entry whose files are not here: sizes by what it matches, types as released.
    /// - `encoder`: its text encoder. `quantize`: what large matrices become as they are loaded.
    /// - Errors on an entry whose sizes are unknown.
    pub fn of_entry(
        entry: &Entry,
        encoder: Option<&Entry>,
        quantize: Option<QuantType>,
        compute: &Compute,
    ) -> Result<Self> {
        let config = Config::of_entry(entry)?;
        let size = text::sizes::t5_xxl();
        let text = T5Config::parse(&size.config, size.name)?;
        let own = config.released_dtype(); // the text encoder is f16
        // what is in blocks already stays so
        let anew = quantize.filter(|_| encoder.is_none_or(|encoder| encoder.variant_of.is_none()));
        let rules = quantize.map(|kind| (kind, config.rules()));
        let of_transformer =
            record(own, rules, compute, &|vb| Transformer::load(&config, vb, config.blocks()).map(|_| ()))?;
        let rules = anew.map(|kind| (kind, &text::names::QUANTISING));
        let of_text = record(DType::F16, rules, compute, &|vb| T5::load(&text, vb)?.touch())?;
        let of_decoder = record(own, None, compute, &|vb| Decoder::load(&config, vb).map(|_| ()))?;
        let of_encoder = record(own, None, compute, &|vb| Encoder::load(&config, vb).map(|_| ()))?;
        let sort = |all: &[(String, u64)], prefix: &str, layers: usize| {
            Weights::sort(all.iter().map(|(name, kept)| (name.as_str(), *kept)), prefix, layers, "")
        };
        let mut of_words = sort(&of_text, TEXT_LAYERS, text.layers);
        let own_encoder = entry.text_encoder.as_deref().and_then(catalogue::named);
        if let (Some(own), Some(taken)) = (own_encoder.and_then(Entry::size), encoder.and_then(Entry::size)) {
            // a variant in another type: its layers are as much smaller as its file
            of_words.layers.iter_mut().for_each(|bytes| *bytes = (*bytes as f64 * taken as f64 / own as f64) as u64);
        }
        let half = compute.stored.unwrap_or(own) == DType::BF16;
        let plain = Product::plain(if half { MatmulType::Bf16 } else { MatmulType::F32 });
        let words_in = if compute.stored == Some(DType::BF16) { MatmulType::Bf16 } else { MatmulType::F32 };
        // blocks are multiplied in bf16, unless f32 was asked for
        let blocks_in = if compute.stored == Some(DType::F32) { MatmulType::F32 } else { MatmulType::Bf16 };
        let product = |plain: Product, int8: bool| match quantize {
            Some(_) => Product { math: blocks_in, blocks: quantize, int8 },
            None => plain,
        };
        Ok(Self {
            name: entry.name.clone(),
            transformer: sort(&of_transformer, config.block_prefix(), config.blocks()),
            config,
            text: (text, of_words),
            encoder: sort(&of_encoder, "", 0),
            decoder: sort(&of_decoder, "", 0),
            upscaler: None,
            text_encoder: None,
            scratch: None,
            kept: false,
            quantised_anew: quantize.is_some(),
            products: Products {
                transformer: product(plain, true),
                text: product(Product::plain(words_in), false),
                vae: plain,
            },
        })
    }
}

impl Model {
    /// Whether the disk has room for the quantised transformer while the program runs.
    pub fn has_room(&self) -> bool {
        let free = |folder: &PathBuf| free_disk(folder).unwrap_or(u64::MAX);
        self.scratch.as_ref().is_some_and(|folder| free(folder) > self.transformer.total())
    }
}

/// Every tensor that `build` asks for, as it would be kept.
fn record(
    own: DType,
    quantize: Option<(QuantType, &Rules)>,
    compute: &Compute,
    build: &dyn Fn(Vars) -> candle_core::Result<()>,
) -> Result<Vec<(String, u64)>> {
    let seen = Arc::new(Mutex::new(vec![]));
    build(Vars::new(Recorder(seen.clone()), compute.dtype, Device::Cpu))?;
    let seen = seen.lock().map(|seen| seen.clone()).unwrap_or_default();
    let all: usize = seen.iter().map(|(_, shape): &Shaped| shape.iter().product::<usize>()).sum();
    let stored = compute.stored.or((all <= SMALL).then_some(compute.dtype)).unwrap_or(own);
    let kept = |(name, shape): &Shaped| {
        let dtype = if shape.len() < 2 { compute.dtype } else { stored };
        let blocks = quantize.and_then(|(kind, rules)| rules.becomes(name, kind));
        match shape[..] {
            [rows, width] if blocks.is_some_and(|kind| width.is_multiple_of(kind.values())) => {
                blocks.map_or(0, |kind| kind.size(rows * width)) as u64
            }
            _ => paired::kept_bytes(shape, dtype, compute.dtype) as u64,
        }
    };
    Ok(seen.iter().map(|shaped| (shaped.0.clone(), kept(shaped))).collect())
}

/// Hands out stand-ins of the right shape over one element, and writes down what was asked for.
struct Recorder(Arc<Mutex<Vec<Shaped>>>);

/// A tensor's name and shape.
type Shaped = (String, Vec<usize>);

impl Source for Recorder {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        if let Ok(mut seen) = self.0.lock() {
            seen.push((name.to_string(), shape.dims().to_vec()));
        }
        Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}
