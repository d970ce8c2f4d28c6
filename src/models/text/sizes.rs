//! Sizes of the released text encoders.

use crate::models::sizes::{Part, Size};
use serde_json::json;

/// The text encoder that models of the catalogue share.
/// - Source: transformers `models/t5`, config.json of google/t5-v1_1-xxl.
pub fn t5_xxl() -> Size {
    let config = json!({
        "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10_240, "num_layers": 24, "vocab_size": 32_128,
        "feed_forward_proj": "gated-gelu",
    });
    Size { name: "t5-xxl", part: Part::Text, config }
}
