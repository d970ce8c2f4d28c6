//! LoRA files: low-rank products that are added to a transformer's layers while it runs, so that they go with weights of any
//! type and change none of them.

use super::open::Tensors;
use crate::models::ltx::names;
use crate::nn::kernel::Math;
use crate::nn::linear::{Linear, Lora};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Prefixes that name the transformer: diffusers', ComfyUI's and Lightricks', PEFT's.
const PREFIXES: [&str; 4] = ["transformer.", "model.diffusion_model.", "diffusion_model.", "base_model.model."];
/// Of kohya's scripts, who also write `_` for `.`.
const FLAT_PREFIX: &str = "lora_unet_";
/// Prefixes that name a text encoder.
const TEXT_PREFIXES: [&str; 5] = ["text_encoder", "text_model", "lora_te", "t5xxl", "conditioner"];

/// What a key ends in, for each part of a layer's pair: the factor that reads, the factor that writes, and what their product
/// is multiplied by, over the rank.
const ENDS: [&[&str]; 3] = [
    &[".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight"],
    &[".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight"],
    &[".alpha"],
];

/// Under this key diffusers keeps what PEFT was configured with.
/// - Source: diffusers `loaders/lora_base.py`, `LORA_ADAPTER_METADATA_KEY`, at 0.42.1.
const METADATA: &str = "lora_adapter_metadata";

/// Keys that an error lists.
const SHOWN: usize = 4;

/// One layer's pair, by their names in the file; see [`ENDS`].
type Pair = [Option<String>; 3];

/// A LoRA that fits a transformer.
pub struct Adapter {
    file: Tensors,
    /// By layer: names of the two factors, and what their product is multiplied by.
    layers: BTreeMap<String, (String, String, f64)>,
}

impl Adapter {
    /// Opens `--lora` and fits it to a transformer.
    /// - `transformer`: with diffusers' names.
    /// - Errors on keys that mean no layer of it, on other sizes, and on kinds that are not low-rank products.
    pub fn open(path: &Path, scale: f64, transformer: &Tensors) -> Result<Self> {
        ensure!(
            path.is_file(),
            "there is no LoRA at `{}`: no such file\n  fix: give --lora a .safetensors file",
            path.display()
        );
        let file = Tensors::open(&[path.to_path_buf()])?;
        let what = format!("the LoRA {}", file.what());
        let pairs = pairs(&file, transformer, &what)?;
        let peft: Option<Value> = match file.metadata(METADATA) {
            Some(text) => {
                Some(serde_json::from_str(text).with_context(|| format!("{what}: `{METADATA}` is not JSON"))?)
            }
            None => None,
        };
        let mut layers = BTreeMap::new();
        for (layer, pair) in pairs {
            let [Some(down), Some(up), alpha] = pair else {
                bail!("{what} has one half of `{layer}` alone\n  fix: fetch the file again")
            };
            let shape = |name: &str| file.shape(name).map(<[usize]>::to_vec).unwrap_or_default();
            let base = transformer.shape(&format!("{layer}.weight")).unwrap_or(&[]);
            let (a, b) = (shape(&down), shape(&up));
            let (&[rank, inputs], &[outputs, up_rank], &[base_outputs, base_inputs]) =
                (a.as_slice(), b.as_slice(), base)
            else {
                bail!(
                    "{what}: the factors of `{layer}` have shapes {a:?} and {b:?}, which are no matrices\n  fix: use a LoRA of LTX-Video"
                )
            };
            ensure!(
                rank == up_rank && rank > 0,
                "{what}: the factors of `{layer}` have shapes {a:?} and {b:?}, which do not multiply\n  fix: fetch the file again"
            );
            ensure!(
                (outputs, inputs) == (base_outputs, base_inputs),
                "{what} is for another size of model: `{layer}` is {outputs} x {inputs} there and {base_outputs} x {base_inputs} here\n  fix: use a LoRA that was trained on this model"
            );
            let alpha = match &alpha {
                Some(name) => Some(number(&file, name)?),
                None => peft.as_ref().and_then(|peft| peft_alpha(peft, &layer)),
            };
            // PEFT's rank-stabilised form divides by the root
            let root = peft.as_ref().is_some_and(|peft| peft["transformer.use_rslora"] == true);
            let over = if root { (rank as f64).sqrt() } else { rank as f64 };
            layers.insert(layer, (down, up, scale * alpha.map_or(1.0, |alpha| alpha / over)));
        }
        // what is multiplied by nothing is left out, and so changes nothing
        layers.retain(|_, (_, _, scale)| *scale != 0.0);
        Ok(Self { file, layers })
    }

    /// The pair of one layer.
    /// - `math`: in what a CPU multiplies by the layer itself.
    pub(super) fn layer(
        &self,
        name: &str,
        math: Math,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Option<Lora>> {
        let Some((down, up, scale)) = self.layers.get(name) else { return Ok(None) };
        let stored = match math {
            _ if !device.is_cpu() => dtype,
            Math::Bf16 => DType::BF16,
            Math::F32 => DType::F32,
        };
        let vb = self.file.load(Some(stored), dtype, device);
        let factor = |name: &str| {
            let shape = self.file.shape(name).unwrap_or(&[0, 0]);
            Ok::<_, candle_core::Error>(Linear::new(vb.matrix(shape[0], shape[1], name)?, None))
        };
        Ok(Some(Lora { down: factor(down)?, up: factor(up)?, scale: *scale }))
    }
}

/// The pairs of a file, by the layer that they belong to.
fn pairs(file: &Tensors, transformer: &Tensors, what: &str) -> Result<BTreeMap<String, Pair>> {
    let layers: Vec<&str> = transformer.names().filter_map(|name| name.strip_suffix(".weight")).collect();
    let flat = |name: &str| name.replace('.', "_");
    let by_flat: BTreeMap<String, &str> = layers
        .iter()
        .flat_map(|layer| {
            let official = names::transformer_to_official(&format!("{layer}.weight"));
            [(flat(layer), *layer), (flat(official.trim_end_matches(".weight")), *layer)]
        })
        .collect();
    let layer_of = |module: &str| -> Option<String> {
        if let Some(flat) = module.strip_prefix(FLAT_PREFIX) {
            return by_flat.get(flat).map(|layer| layer.to_string());
        }
        let mut rest = module;
        while let Some(prefix) = PREFIXES.iter().find(|prefix| rest.starts_with(**prefix)) {
            rest = &rest[prefix.len()..];
        }
        let name = names::transformer_from_official(&format!("{rest}.weight"));
        transformer.shape(&name).filter(|shape| shape.len() == 2)?;
        Some(name.trim_end_matches(".weight").to_string())
    };
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    let mut unknown = vec![];
    for key in file.names() {
        ensure!(
            !TEXT_PREFIXES.iter().any(|prefix| key.starts_with(prefix)),
            "{what} changes the text encoder too (`{key}`), and reel adds LoRAs to the transformer alone\n  fix: use a LoRA of the transformer"
        );
        ensure!(
            !key.ends_with(".dora_scale"),
            "{what} is a DoRA (`{key}`), which is no low-rank product alone\n  fix: use a LoRA"
        );
        let place = ENDS.iter().enumerate().find_map(|(i, ends)| {
            let module = ends.iter().find_map(|end| key.strip_suffix(end))?;
            Some((layer_of(module)?, i))
        });
        match place {
            Some((layer, i)) => {
                let before = pairs.entry(layer.clone()).or_default()[i].replace(key.to_string());
                if let Some(before) = before {
                    bail!("{what} has `{key}` and `{before}`, which mean the same\n  fix: use another LoRA");
                }
            }
            None => unknown.push(key),
        }
    }
    if !unknown.is_empty() {
        let shown: Vec<String> = unknown.iter().take(SHOWN).map(|key| format!("`{key}`")).collect();
        let more = unknown.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        bail!(
            "{what} has keys that are no part of this model: {}{more}\n  fix: use a LoRA of LTX-Video 0.9, in diffusers' or ComfyUI's form",
            shown.join(", ")
        );
    }
    ensure!(!pairs.is_empty(), "{what} is empty\n  fix: fetch it again");
    Ok(pairs)
}

/// A tensor of one number.
fn number(file: &Tensors, name: &str) -> Result<f64> {
    let count = file.shape(name).map_or(0, |shape| shape.iter().product());
    ensure!(count == 1, "the LoRA {}: `{name}` has {count} values, not one\n  fix: fetch it again", file.what());
    let shape = file.shape(name).unwrap_or(&[]).to_vec();
    let value = file.load(None, DType::F32, &Device::Cpu).get(shape, name)?;
    Ok(value.flatten_all()?.to_vec1::<f32>()?[0] as f64)
}

/// What PEFT's configuration says of a layer's alpha.
fn peft_alpha(peft: &Value, layer: &str) -> Option<f64> {
    let pattern = peft["transformer.alpha_pattern"].as_object();
    let own = pattern.and_then(|all| all.iter().find(|(key, _)| layer == *key || layer.ends_with(&format!(".{key}"))));
    own.map(|(_, alpha)| alpha).unwrap_or(&peft["transformer.lora_alpha"]).as_f64()
}
