//! Quantised weights in forms that reel does not read, told by what stands beside them, so that an error can name them. Read
//! without the scales that belong to them, such weights would make a clip of noise, or of nothing in particular.

use super::open::{Entry, Type};
use super::scaled;
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

/// The form of the first tensor that is quantised in one that reel does not read, and its name.
pub(super) fn unread(entries: &BTreeMap<String, Entry>) -> Option<(String, &str)> {
    entries.iter().find_map(|(name, entry)| Some((form(name, entry, entries)?, name.as_str())))
}

fn form(name: &str, entry: &Entry, entries: &BTreeMap<String, Entry>) -> Option<String> {
    if let Some((_, form)) = ENDS.iter().find(|(end, _)| name.ends_with(end)) {
        let data = name.rsplit_once('.').and_then(|(module, _)| entries.get(&format!("{module}._data")));
        return Some(match data.map(|data| data.dtype) {
            Some(Type::Plain(Dtype::I8)) => format!("{form} int8"),
            Some(dtype) => format!("{form} {dtype}"),
            None => form.to_string(),
        });
    }
    if name.contains(".quant_state.") {
        return Some("bitsandbytes 4-bit".to_string());
    }
    let (module, end) = name.rsplit_once('.').unwrap_or(("", name));
    if end == "comfy_quant" {
        return Some(format!("ComfyUI's `{}`", shown(&scaled::format_of(entry))));
    }
    if !end.to_lowercase().contains("scale") || PLAIN.contains(&end) {
        return None;
    }
    // of weights that are there, or of some that are so small that they have to have scales
    let of = entries.get(&format!("{module}.weight")).or_else(|| entries.get(module));
    let small = |entry: &Entry| matches!(entry.dtype, Type::Plain(dtype) if dtype.bitsize() <= 8);
    match of {
        Some(weight) => Some(format!("{} with scales of an unknown form", weight.dtype)),
        None if entries.values().any(small) => Some("scales of an unknown form".to_string()),
        None => None,
    }
}

/// A text of a file, short enough for an error.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}
