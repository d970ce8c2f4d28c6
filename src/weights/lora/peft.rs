//! What the trainer's settings say of a LoRA: PEFT's `LoraConfig`, which decides what the products are multiplied by. It comes in
//! the header of the file, or as `adapter_config.json` beside it.

use crate::weights::config::{self, brief};
use crate::weights::open::Tensors;
use crate::weights::read_json;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// Keys of a header, and what stands before each setting below them.
/// - Source: diffusers `loaders/lora_base.py`, `LORA_ADAPTER_METADATA_KEY`, at 0.42.1; finetrainers `trainer/sft_trainer/trainer.py`.
const HEADERS: [(&str, &str); 2] = [("lora_adapter_metadata", "transformer."), ("lora_config", "")];

/// Keys of a header that hold nothing but alpha.
const ALPHAS: [&str; 2] = ["lora_alpha", "alpha"];

/// PEFT's own files: of settings, and of weights.
const BESIDE: &str = "adapter_config.json";
pub const FILE: &str = "adapter_model.safetensors";
/// What PEFT's own names of tensors begin with.
const PEFT_PREFIX: &str = "base_model.model.";

/// Initialisations that change the model's own weights too.
const CHANGING: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// Whether a file has PEFT's own names, and so comes with a file of settings.
pub fn is_peft(file: &Tensors) -> bool {
    file.names().any(|name| name.starts_with(PEFT_PREFIX))
}

/// A LoRA's settings.
pub struct Settings {
    values: Value,
    prefix: &'static str,
    /// Where they stand, for errors.
    place: String,
}

impl Settings {
    /// Those of a file's header, or else those beside it. PEFT's files go with what is beside them; another file does where its
    /// ranks are those that the settings say.
    /// - `ranks`: of every layer. `alphas`: whether the file says by itself what its products are multiplied by.
    pub fn find(file: &Tensors, path: &Path, ranks: &[(&str, usize)], alphas: bool) -> Result<Option<Self>> {
        for (key, prefix) in HEADERS {
            if let Some(text) = file.metadata(key) {
                let place = format!("the LoRA {}: `{key}` in its header", file.what());
                let values = config::json(text.as_bytes()).with_context(|| format!("{place} is not JSON"))?;
                return Ok(Some(Self { values, prefix, place }));
            }
        }
        if alphas {
            return Ok(None);
        }
        if let Some((key, alpha)) = ALPHAS.iter().find_map(|key| Some((key, file.metadata(key)?))) {
            let place = format!("the LoRA {}: `{key}` in its header", file.what());
            return Ok(Some(Self { values: json!({ "lora_alpha": alpha }), prefix: "", place }));
        }
        let beside = path.with_file_name(BESIDE);
        if !beside.is_file() {
            return Ok(None);
        }
        let place = format!("`{}`", beside.display());
        let settings = Self { values: read_json(&beside)?, prefix: "", place };
        let own = path.file_name().is_some_and(|name| name == FILE) || is_peft(file);
        let fits =
            || ranks.iter().all(|(layer, rank)| matches!(settings.rank(layer), Ok(Some(r)) if r == *rank as f64));
        Ok((own || fits()).then_some(settings))
    }

    /// Errors on what makes it more than low-rank products.
    pub fn check(&self) -> Result<()> {
        let place = &self.place;
        ensure!(self.values.is_object(), "{place} is not a JSON object\n  fix: fetch it again");
        let fix = "fix: use a LoRA that was trained without it";
        if let Some(kind) = self.get("peft_type").as_str().filter(|kind| *kind != "LORA") {
            bail!("{place}: it is of the kind `{}`, and reel reads `LORA`\n  fix: use a LoRA", brief(kind))
        }
        ensure!(
            self.get("use_dora") != &Value::Bool(true),
            "{place}: it is a DoRA (`use_dora`), which is no low-rank product alone\n  fix: use a LoRA"
        );
        let bias = self.get("bias").as_str().unwrap_or("none");
        ensure!(
            bias == "none",
            "{place}: `bias` is `{}`, and reel adds no biases that were trained beside it\n  {fix}",
            brief(bias)
        );
        for key in ["lora_bias", "use_qalora"] {
            ensure!(self.get(key) != &Value::Bool(true), "{place}: reel does not read LoRAs with `{key}`\n  {fix}");
        }
        for key in ["modules_to_save", "layer_replication", "trainable_token_indices"] {
            let value = self.get(key);
            let empty = value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty);
            ensure!(empty, "{place}: reel does not read LoRAs with `{key}`\n  {fix}");
        }
        if let Some(kind) = self.get("init_lora_weights").as_str()
            && CHANGING.iter().any(|name| kind.starts_with(name))
        {
            bail!(
                "{place}: `init_lora_weights` is `{}`, which changes the model's own weights too\n  fix: convert it to a plain LoRA with PEFT (`path_initial_model_for_weight_conversion`)",
                brief(kind)
            )
        }
        Ok(())
    }

    /// What the product of a layer is multiplied by.
    /// - Errors when the settings are for another rank.
    pub fn factor(&self, layer: &str, rank: usize) -> Result<f64> {
        if let Some(said) = self.rank(layer)? {
            ensure!(
                said == rank as f64,
                "{}: the rank of `{layer}` is {said}, and {rank} in the LoRA\n  fix: put the settings beside it that it was trained with, or none",
                self.place
            );
        }
        let Some(alpha) = self.of_layer("alpha_pattern", "lora_alpha", layer)? else { return Ok(1.0) };
        // the rank-stabilised form divides by the root
        let root = self.get("use_rslora") == &Value::Bool(true);
        Ok(alpha / if root { (rank as f64).sqrt() } else { rank as f64 })
    }

    fn rank(&self, layer: &str) -> Result<Option<f64>> {
        self.of_layer("rank_pattern", "r", layer)
    }

    fn get(&self, key: &str) -> &Value {
        &self.values[format!("{}{key}", self.prefix)]
    }

    /// A number that some layers have of their own.
    fn of_layer(&self, pattern: &str, key: &str, layer: &str) -> Result<Option<f64>> {
        for (name, value) in self.get(pattern).as_object().into_iter().flatten() {
            if self.means(name, layer)? {
                return self.number(pattern, value);
            }
        }
        self.number(key, self.get(key))
    }

    fn number(&self, key: &str, value: &Value) -> Result<Option<f64>> {
        if value.is_null() {
            return Ok(None);
        }
        let number = value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|x| x.is_finite());
        let number = number.with_context(|| format!("{}: `{key}` has a value that is no number", self.place))?;
        Ok(Some(number))
    }

    /// Whether a key of a pattern means that layer: its whole name, or the end of it.
    /// - Errors on regular expressions, which PEFT takes too.
    /// - Source: PEFT `utils/other.py`, `get_pattern_key`, at 0.18.
    fn means(&self, pattern: &str, layer: &str) -> Result<bool> {
        let whole = pattern.starts_with('^');
        let name = pattern.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
        ensure!(
            !name.contains(['\\', '*', '+', '?', '[', ']', '(', ')', '{', '}', '|', '^', '$']),
            "{}: a layer is named by a regular expression, `{}`, and reel reads names alone\n  fix: name the layers one by one",
            self.place,
            brief(pattern)
        );
        let end = layer.strip_suffix(name.as_str());
        Ok(end.is_some_and(|before| before.is_empty() || (!whole && before.ends_with('.'))))
    }
}
