//! Quantised weights in forms that reel does not read, told by what stands beside them, so that an error can name them. Read
//! without the scales that belong to them, such weights would make a clip of noise, or of nothing in particular.

use super::entry::{Entry, Type};
use super::scaled;
use crate::weights::config::brief;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;

/// What to use in place of weights in such a form.
pub const FIX: &str = "fix: use the same weights in bf16, f16 or fp8 (e4m3), or as GGUF of Q8_0, Q6_K, Q5_K or Q4_K";

/// What names end in, and the form that it belongs to.
const ENDS: [(&str, &str); 18] = [
    ("._data", "optimum-quanto"),
    ("._scale", "optimum-quanto"),
    ("._shift", "optimum-quanto"),
    (".SCB", "bitsandbytes int8"),
    (".weight_format", "bitsandbytes int8"),
    (".absmax", "bitsandbytes 4-bit"),
    (".nested_absmax", "bitsandbytes 4-bit"),
    (".quant_map", "bitsandbytes 4-bit"),
    (".wscales", "SVDQuant (Nunchaku)"),
    (".smooth_factor", "SVDQuant (Nunchaku)"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_zero_point", "integers with a zero point"),
    (".weight_scale_2", "NVFP4"),
    (".weight_scale_inv", "block-wise scaled fp8"),
    (".block_scale", "block-wise scaled"),
];

/// Names that say `scale` and belong to models as they are.
const PLAIN: [&str; 6] = [
    "scale_shift_table",
    "last_scale_shift_table",
    "per_channel_scale1",
    "per_channel_scale2",
    "timestep_scale_multiplier",
    "logit_scale",
];

/// The form of the first tensor that is quantised in one that reel does not read, and its name. Forms that have a name go first:
/// some of them have scales of activations too.
pub(super) fn unread(entries: &BTreeMap<String, Entry>) -> Option<(String, &str)> {
    type GgufForm = fn(&str, &Entry, &BTreeMap<String, Entry>) -> Option<String>;
    [named as GgufForm, scaled_otherwise]
        .iter()
        .find_map(|form| entries.iter().find_map(|(name, entry)| Some((form(name, entry, entries)?, name.as_str()))))
}

/// The form that a tensor's name belongs to.
fn named(name: &str, entry: &Entry, entries: &BTreeMap<String, Entry>) -> Option<String> {
    if name.contains(".quant_state.") {
        return Some("bitsandbytes 4-bit".to_string());
    }
    let (module, end) = name.rsplit_once('.')?;
    if end == "comfy_quant" {
        return Some(format!("ComfyUI's `{}`", brief(&scaled::format_of(entry))));
    }
    let (_, form) = ENDS.iter().find(|(end, _)| name.ends_with(end))?;
    Some(match entries.get(&format!("{module}._data")).map(|data| data.dtype) {
        Some(Type::Plain(Dtype::I8)) => format!("{form} int8"),
        Some(dtype) => format!("{form} {dtype}"),
        None => form.to_string(),
    })
}

/// What a scale belongs to that nobody has read: weights that are there, or some that are so small that they have to have scales.
fn scaled_otherwise(name: &str, _: &Entry, entries: &BTreeMap<String, Entry>) -> Option<String> {
    let (module, end) = name.rsplit_once('.').unwrap_or(("", name));
    if !end.to_lowercase().contains("scale") || PLAIN.contains(&end) {
        return None;
    }
    let small = |entry: &Entry| matches!(entry.dtype, Type::Plain(dtype) if dtype.bitsize() <= 8);
    match entries.get(&format!("{module}.weight")).or_else(|| entries.get(module)) {
        Some(weight) => Some(format!("{} with scales of an unknown form", weight.dtype)),
        None if entries.values().any(small) => Some("scales of an unknown form".to_string()),
        None => None,
    }
}
