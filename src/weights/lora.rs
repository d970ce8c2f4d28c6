//! LoRA files: low-rank products that are added to a transformer's layers while it runs, so that they go with weights of any
//! type and change none of them; and what some of them add to biases.

mod peft;

use super::entry::Type;
use super::open::{Added, Tensors};
use super::rules::LayerNames;
use crate::nn::kernel::MatmulType;
use crate::nn::matrix::LowRank;
use anyhow::{Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use peft::Settings;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prefixes that name the transformer: diffusers', ComfyUI's and Lightricks', PEFT's.
const PREFIXES: [&str; 4] = ["transformer.", "model.diffusion_model.", "diffusion_model.", "base_model.model."];
/// Of kohya's scripts and of those like them, who also write `_` for `.`.
const FLAT_PREFIXES: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];
/// Prefixes that name a text encoder.
const TEXT_PREFIXES: [&str; 5] = ["text_encoder", "text_model", "lora_te", "t5xxl", "conditioner"];

/// What a key ends in, for each part of a layer: the factor that reads, the factor that writes, what their product is multiplied
/// by, over the rank, and what is added to the layer's bias.
/// - Source of the last: ComfyUI `comfy/lora.py`, `load_lora`, at 0.3.76.
const ENDS: [&[&str]; 4] = [
    &[".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight"],
    &[".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight"],
    &[".alpha"],
    &[".diff_b"],
];

/// What keys of other kinds end in, for errors; of the first kind also what they hold.
const DORA: [&str; 2] = [".dora_scale", ".lora_magnitude_vector"];
const OTHERS: [(&str, &str); 8] = [
    (".hada_w1_a", "a LoHa"),
    (".lokr_w1", "a LoKr"),
    (".lokr_w1_a", "a LoKr"),
    (".oft_blocks", "an OFT"),
    (".oft_diag", "an OFT"),
    (".diff", "one of whole differences"),
    (".set_weight", "one of whole weights"),
    (".lora_mid.weight", "a LoCon with a core"),
];

/// What a folder's LoRA is called: by PEFT, and by diffusers.
const IN_FOLDERS: [&str; 2] = [peft::FILE, "pytorch_lora_weights.safetensors"];

/// Keys that an error lists.
const SHOWN: usize = 4;

/// One layer's parts, by their names in the file; see [`ENDS`].
type Parts = [Option<String>; 4];

/// A LoRA that fits a transformer.
struct Adapter {
    file: Tensors,
    /// By layer: names of the two factors, and what their product is multiplied by.
    layers: BTreeMap<String, (String, String, f64)>,
    /// By layer: the name of what is added to its bias.
    biases: BTreeMap<String, String>,
    scale: f64,
    /// What the user should know of it.
    remark: Option<String>,
}

/// A layer's two factors, by name, which multiply and fit the layer.
struct Pair {
    down: String,
    up: String,
    rank: usize,
    alpha: Option<f64>,
}

impl Tensors {
    /// The same tensors, with LoRAs added to the layers that load them.
    /// - `names`: what they may call the layers, which have diffusers' names here. Errors when one does not fit.
    pub fn with_loras<'a>(mut self, loras: impl Iterator<Item = (&'a Path, f64)>, names: LayerNames) -> Result<Self> {
        let open = |(path, scale)| Ok(Box::new(Adapter::open(path, scale, &self, names)?) as Box<dyn Added>);
        self.loras = Arc::new(loras.map(open).collect::<Result<_>>()?);
        Ok(self)
    }
}

impl Adapter {
    /// Opens `--lora`, a file or the folder of one, and fits it to a transformer.
    /// - `transformer`: with diffusers' names.
    /// - Errors on keys that mean no layer of it, on other sizes, and on kinds that are not low-rank products.
    fn open(path: &Path, scale: f64, transformer: &Tensors, names: LayerNames) -> Result<Self> {
        let inside = IN_FOLDERS.map(|name| path.join(name));
        let path = inside.iter().find(|file| file.is_file()).map_or(path, PathBuf::as_path);
        ensure!(
            path.is_file(),
            "there is no LoRA at `{}`: no such file\n  fix: give --lora a .safetensors file",
            path.display()
        );
        let mut file = Tensors::open(&[path.to_path_buf()])?;
        file.rules = transformer.rules;
        if let Some((name, raw)) = file.iter().find(|(_, raw)| raw.dtype.kind().is_none()) {
            bail!(
                "{}: `{name}` has element type {}, which no factor of a LoRA has\n  fix: use a LoRA in bf16, f16 or f32",
                file.what(),
                raw.dtype
            )
        }
        let what = format!("the LoRA {}", file.what());
        if let Some(damage) = file.find_no_numbers() {
            return Err(damage);
        }
        let (mut pairs, mut biases) = (BTreeMap::new(), BTreeMap::new());
        for (layer, parts) in parts(&file, transformer, names, &what)? {
            let [down, up, alpha, bias] = parts;
            if let Some(bias) = bias {
                let (own, base) = (file.shape(&bias), transformer.shape(&format!("{layer}.bias")));
                ensure!(
                    base.is_some() && own == base,
                    "{what}: `{bias}` is for the bias of another model: of shape {own:?} there and {base:?} here\n  fix: use a LoRA that was trained on this model"
                );
                biases.insert(layer.clone(), bias);
                if (&down, &up, &alpha) == (&None, &None, &None) {
                    continue;
                }
            }
            let (Some(down), Some(up)) = (down, up) else {
                bail!("{what} has one half of `{layer}` alone\n  fix: fetch the file again")
            };
            pairs.insert(layer.clone(), pair(&file, transformer, (&layer, names.family), (down, up, alpha), &what)?);
        }
        let ranks: Vec<(&str, usize)> = pairs.iter().map(|(layer, pair)| (layer.as_str(), pair.rank)).collect();
        let settings = Settings::find(&file, path, &ranks, pairs.values().any(|pair| pair.alpha.is_some()))?;
        settings.iter().try_for_each(Settings::check)?;
        let unknown = settings.is_none() && pairs.values().all(|pair| pair.alpha.is_none()) && peft::is_peft(&file);
        let remark = unknown.then(|| {
            format!(
                "{what}: `adapter_config.json` is not beside it, so its strength is not known: it is added as with an alpha of its rank"
            )
        });
        let most = |layer: &str, of: &str| {
            transformer.entries.get(&format!("{layer}.{of}")).map_or(f64::INFINITY, |entry| largest(entry.dtype))
        };
        let beyond = |what_goes: String, factor: f64, most: f64| {
            anyhow!(
                "{what}: {what_goes}, times {factor}, can go beyond what the weights' type holds, {most:e}\n  fix: give a smaller scale, --lora FILE:SCALE, or fetch the file again"
            )
        };
        let mut layers = BTreeMap::new();
        for (layer, Pair { down, up, rank, alpha }) in pairs {
            let factor = match (alpha, &settings) {
                (Some(alpha), _) => alpha / rank as f64,
                (None, Some(settings)) => settings.factor(&layer, rank)?,
                (None, None) => 1.0,
            };
            // what is multiplied by nothing is left out, and so changes nothing
            if scale * factor != 0.0 {
                let (factor, most) = (scale * factor, most(&layer, "weight"));
                if most_of_product(&file, &up, &down)? * factor.abs() > most {
                    return Err(beyond(format!("the product of `{up}` and `{down}`"), factor, most));
                }
                layers.insert(layer, (down, up, factor));
            }
        }
        if scale == 0.0 {
            biases.clear();
        }
        for (layer, bias) in &biases {
            let shape = file.shape(bias).unwrap_or_default().to_vec();
            let values = file.load(None, DType::F32, &Device::Cpu).get(shape, bias)?.flatten_all()?.to_vec1::<f32>()?;
            let largest = values.into_iter().fold(0.0, |most: f64, x| most.max(f64::from(x).abs()));
            let most = most(layer, "bias");
            if largest * scale.abs() > most {
                return Err(beyond(format!("`{bias}`"), scale, most));
            }
        }
        Ok(Self { file, layers, biases, scale, remark })
    }
}

impl Added for Adapter {
    fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    fn bias(&self, layer: &str, dtype: DType, device: &Device) -> candle_core::Result<Option<Tensor>> {
        let Some(name) = self.biases.get(layer) else { return Ok(None) };
        let shape = self.file.shape(name).unwrap_or_default().to_vec();
        let difference = self.file.load(None, DType::F32, device).get(shape, name)?;
        Ok(Some((difference * self.scale)?.to_dtype(dtype)?))
    }

    fn layer(
        &self,
        name: &str,
        math: MatmulType,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Option<LowRank>> {
        let Some((down, up, scale)) = self.layers.get(name) else { return Ok(None) };
        let stored = match math {
            _ if !device.is_cpu() => dtype,
            MatmulType::Bf16 => DType::BF16,
            MatmulType::F32 => DType::F32,
        };
        let vb = self.file.load(Some(stored), dtype, device);
        let factor = |name: &str| {
            let shape = self.file.shape(name).unwrap_or(&[0, 0]);
            vb.matrix(shape[0], shape[1], name)
        };
        Ok(Some(LowRank { down: factor(down)?, up: factor(up)?, scale: *scale }))
    }
}

/// The most that a value of the product of two matrices can be, by the lengths of the rows of the one and of the columns of the
/// other: the product itself is never made.
/// - `left`: (n, rank). `right`: (rank, m).
fn most_of_product(file: &Tensors, left: &str, right: &str) -> Result<f64> {
    let squares = |name: &str| -> Result<Vec<Vec<f64>>> {
        let shape = file.shape(name).unwrap_or_default().to_vec();
        let values = file.load(None, DType::F32, &Device::Cpu).get(shape, name)?.to_vec2::<f32>()?;
        Ok(values.into_iter().map(|row| row.into_iter().map(|x| f64::from(x).powi(2)).collect()).collect())
    };
    let rows = squares(left)?.iter().map(|row| row.iter().sum::<f64>()).fold(0.0, f64::max);
    let mut columns = vec![];
    for row in squares(right)? {
        columns.resize(row.len(), 0.0);
        columns.iter_mut().zip(row).for_each(|(sum, square)| *sum += square);
    }
    Ok((rows * columns.into_iter().fold(0.0, f64::max)).sqrt())
}

/// The largest number that a layer can hold whose weights are of this type. What is kept in 8 bits or less is computed in bf16 at
/// the least.
fn largest(dtype: Type) -> f64 {
    if dtype == Type::Plain(Dtype::F16) { f64::from(half::f16::MAX) } else { f64::from(half::bf16::MAX) }
}

/// Checks that a layer's factors multiply, and fit the layer.
fn pair(
    file: &Tensors,
    transformer: &Tensors,
    (layer, family): (&str, &str),
    (down, up, alpha): (String, String, Option<String>),
    what: &str,
) -> Result<Pair> {
    let shape = |name: &str| file.shape(name).map(<[usize]>::to_vec).unwrap_or_default();
    let base = transformer.shape(&format!("{layer}.weight")).unwrap_or(&[]);
    let (a, b) = (shape(&down), shape(&up));
    let (&[rank, inputs], &[outputs, up_rank], &[base_outputs, base_inputs]) = (a.as_slice(), b.as_slice(), base)
    else {
        bail!(
            "{what}: the factors of `{layer}` have shapes {a:?} and {b:?}, which are no matrices\n  fix: use a LoRA of {family}"
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
    let alpha = alpha.map(|name| number(file, &name)).transpose()?;
    Ok(Pair { down, up, rank, alpha })
}

/// The parts of a file, by the layer that they belong to.
fn parts(file: &Tensors, transformer: &Tensors, names: LayerNames, what: &str) -> Result<BTreeMap<String, Parts>> {
    let layer_of = layers_by_module(transformer, names);
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    let mut unknown = vec![];
    for key in file.names() {
        check_kind(key, what)?;
        let place = ENDS.iter().enumerate().find_map(|(i, ends)| {
            let module = ends.iter().find_map(|end| key.strip_suffix(end))?;
            Some((layer_of(module)?, i))
        });
        match place {
            Some((layer, i)) => {
                let before = parts.entry(layer.clone()).or_default()[i].replace(key.to_string());
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
            "{what} has keys that are no part of this model: {}{more}\n  fix: use a LoRA of {}, in diffusers' or ComfyUI's form",
            shown.join(", "),
            names.family
        );
    }
    ensure!(!parts.is_empty(), "{what} is empty\n  fix: fetch it again");
    Ok(parts)
}

/// Finds the layer of a transformer that a module's name in a LoRA means.
fn layers_by_module(transformer: &Tensors, names: LayerNames) -> impl Fn(&str) -> Option<String> {
    let layers: Vec<&str> = transformer.names().filter_map(|name| name.strip_suffix(".weight")).collect();
    let flat = |name: &str| name.replace('.', "_");
    let by_flat: BTreeMap<String, &str> = layers
        .iter()
        .flat_map(|layer| {
            let official = (names.to_official)(&format!("{layer}.weight"));
            [(flat(layer), *layer), (flat(official.trim_end_matches(".weight")), *layer)]
        })
        .collect();
    move |module: &str| {
        if let Some(flat) = FLAT_PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)) {
            return by_flat.get(flat).map(|layer| layer.to_string());
        }
        let mut rest = module;
        while let Some(prefix) = PREFIXES.iter().find(|prefix| rest.starts_with(**prefix)) {
            rest = &rest[prefix.len()..];
        }
        let name = (names.from_official)(&format!("{rest}.weight"));
        transformer.shape(&name).filter(|shape| shape.len() == 2)?;
        Some(name.trim_end_matches(".weight").to_string())
    }
}

/// Errors on keys of what is no LoRA of a transformer.
fn check_kind(key: &str, what: &str) -> Result<()> {
    ensure!(
        !TEXT_PREFIXES.iter().any(|prefix| key.starts_with(prefix)),
        "{what} changes the text encoder too (`{key}`), and reel adds LoRAs to the transformer alone\n  fix: use a LoRA of the transformer"
    );
    // PEFT may write the adapter's name and `.weight` behind
    let is_dora = DORA.iter().any(|end| key.ends_with(end) || key.contains(&format!("{end}.")));
    ensure!(!is_dora, "{what} is a DoRA (`{key}`), which is no low-rank product alone\n  fix: use a LoRA");
    if let Some((_, kind)) = OTHERS.iter().find(|(end, _)| key.ends_with(end)) {
        bail!("{what} is {kind} (`{key}`), and reel adds low-rank products alone\n  fix: use a LoRA")
    }
    Ok(())
}

/// A tensor of one number.
fn number(file: &Tensors, name: &str) -> Result<f64> {
    let count = file.shape(name).map_or(0, |shape| shape.iter().product());
    ensure!(count == 1, "the LoRA {}: `{name}` has {count} values, not one\n  fix: fetch it again", file.what());
    let shape = file.shape(name).unwrap_or(&[]).to_vec();
    let value = file.load(None, DType::F32, &Device::Cpu).get(shape, name)?;
    let value = value.flatten_all()?.to_vec1::<f32>()?[0] as f64;
    ensure!(value.is_finite(), "the LoRA {}: `{name}` is {value}\n  fix: fetch it again", file.what());
    Ok(value)
}
