//! Parts of a checkpoint that come in files of their own: the VAE, the text encoder; and what single files say of them.

use crate::models::ltx::config::{TransformerConfig, VaeConfig};
use crate::models::ltx::names;
use crate::models::ltx::vae::{Decoder, Encoder, LatentStatistics};
use crate::models::random::{self, Part};
use crate::models::text;
use crate::models::text::t5::T5Config;
use crate::nn::vars::Vars;
use crate::platform::device::Quantize;
use crate::platform::files::{AtomicFile, would_replace};
use crate::platform::progress::Progress;
use crate::weights::config;
use crate::weights::open::{Tensors, weight_files};
use crate::weights::rules::Form;
use crate::weights::{part_folder, read_json};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What GGUF files of the transformer call it.
pub(super) const LTX_ARCHITECTURE: &str = "ltxv";

/// The folder `vae/` of a diffusers directory.
pub(super) fn vae_folder(dir: &Path) -> Result<(VaeConfig, Tensors)> {
    let path = dir.join("config.json");
    let config = VaeConfig::parse(&read_json(&path)?, &format!("`{}`", path.display()))?;
    Ok((config, Tensors::open(&weight_files(dir)?)?))
}

/// The tensors below a prefix, without it.
pub(super) fn part(tensors: &Tensors, prefix: &str) -> Tensors {
    tensors.renamed(|name| name.strip_prefix(prefix).map(String::from))
}

pub(super) fn shapes(part: &Tensors) -> impl Fn(&str) -> Option<Vec<usize>> {
    let part = part.clone();
    move |name: &str| part.shape(name).map(<[usize]>::to_vec)
}

/// The configuration that a single file carries.
pub(super) fn header_config(tensors: &Tensors) -> Result<Option<Value>> {
    let text = tensors.metadata("config");
    let json = text.map(|text| {
        config::json(text.as_bytes()).with_context(|| format!("{}: `config` in its header is not JSON", tensors.what()))
    });
    json.transpose()
}

/// The transformer of a single file, in the file's names.
pub(super) fn transformer_of(tensors: &Tensors) -> Tensors {
    part(tensors, names::transformer_prefix(tensors.names()))
}

/// The text encoder of a single file, with transformers' names; `None` where it has none.
pub(super) fn text_of(tensors: &Tensors) -> Option<Tensors> {
    let text = part(tensors, names::text_prefix(tensors.names())?);
    Some(text.renamed(|name| Some(text::names::from_llama(name))))
}

/// Whether a video autoencoder is in the file, below a prefix or by itself.
pub(super) fn has_vae(tensors: &Tensors) -> bool {
    names::vae_prefix(tensors.names()).is_some()
}

/// The VAE of a single file, in either naming.
pub(super) fn vae_of(tensors: &Tensors, config: Option<Value>) -> Result<(VaeConfig, Tensors)> {
    let what = tensors.what();
    let vae = part(tensors, names::vae_prefix(tensors.names()).unwrap_or_default());
    let config = match config {
        Some(config) => VaeConfig::parse(&config, &format!("{what}: `config.vae` in its header"))?,
        None if is_diffusers(&vae) => released_vae(&vae)?,
        None => VaeConfig::parse(&names::vae_config_from_shapes(shapes(&vae), what)?, what)?,
    };
    let official = vae.names().any(|n| n.starts_with("per_channel_statistics."));
    let vae = if official { vae.renamed(|name| names::vae_from_official(name, &config)) } else { vae };
    Ok((config, vae))
}

/// Whether a VAE has diffusers' names.
fn is_diffusers(vae: &Tensors) -> bool {
    vae.names().any(|name| name.starts_with("decoder.mid_block."))
}

/// The configuration of a VAE of diffusers that came without its `config.json`: that of the release whose shapes it has.
fn released_vae(vae: &Tensors) -> Result<VaeConfig> {
    let released = random::sizes().into_iter().filter(|(_, part, _)| *part == Part::Vae);
    let mut released = released.filter_map(|(name, _, json)| VaeConfig::parse(&json, name).ok());
    let fits = |config: &VaeConfig| vae.check(|vb| load_vae(config, vb)).is_ok();
    released.find(fits).with_context(|| {
        format!(
            "{} is a VAE without its configuration, and its shapes are those of no release\n  fix: put its `config.json` beside it",
            vae.what()
        )
    })
}

/// Asks for every tensor of a VAE.
fn load_vae(config: &VaeConfig, vb: Vars) -> candle_core::Result<()> {
    LatentStatistics::load(config, vb.clone())?;
    Encoder::load(config, vb.pp("encoder"))?;
    Decoder::load(config, vb.pp("decoder")).map(|_| ())
}

/// `--vae`: a single file with a VAE in it, or a directory.
pub(super) fn open_vae(path: &Path) -> Result<(VaeConfig, Tensors)> {
    ensure!(
        path.exists(),
        "there is no VAE at `{}`: no such file or directory\n  fix: give --vae a .safetensors file of LTX-Video, or a directory",
        path.display()
    );
    if path.is_dir() {
        return vae_folder(&part_folder(path, "vae").unwrap_or_else(|| path.to_path_buf()));
    }
    let tensors = Tensors::open(&[path.to_path_buf()])?;
    ensure!(
        has_vae(&tensors),
        "{}: there is no video autoencoder in it (`decoder.conv_in.conv.weight`)\n  fix: give --vae a single file of LTX-Video, a VAE's own file, or a directory",
        tensors.what()
    );
    // a file of a diffusers directory has its configuration beside it
    let config = path.with_file_name("config.json");
    if is_diffusers(&tensors) && config.is_file() {
        return Ok((VaeConfig::parse(&read_json(&config)?, &format!("`{}`", config.display()))?, tensors));
    }
    let config = header_config(&tensors)?.and_then(|config| config.get("vae").cloned());
    vae_of(&tensors, config)
}

/// The one VAE that lies beside a file without any: another file's, or a folder `vae/`.
/// - Errors when there is none, and when there are several.
pub(super) fn vae_beside(model: &Path, what: &str) -> Result<PathBuf> {
    let dir = model.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|x| x == "safetensors")).collect();
    files.sort();
    let with_vae = |file: &PathBuf| Tensors::open(std::slice::from_ref(file)).is_ok_and(|tensors| has_vae(&tensors));
    let found: Vec<PathBuf> = part_folder(dir, "vae").into_iter().chain(files.into_iter().filter(with_vae)).collect();
    let fix = "fix: pass --vae PATH, a .safetensors file of the same version of LTX-Video or a directory `vae/`";
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("{what} brings no VAE, and there is none beside it\n  {fix}"),
        more => {
            let more: Vec<String> = more.iter().map(|path| format!("`{}`", path.display())).collect();
            bail!("{what} brings no VAE, and there are several beside it: {}\n  {fix}", more.join(", "))
        }
    }
}

/// `--text-encoder`, or the folder of that name in a checkpoint.
pub(crate) fn open_text_encoder(path: &Path) -> Result<(T5Config, Tensors)> {
    ensure!(
        path.exists(),
        "there is no text encoder at `{}`: no such file or directory\n  fix: give --text-encoder a .safetensors or .gguf file, a directory, or a name of `reel models list`",
        path.display()
    );
    let nested = part_folder(path, "text_encoder"); // a whole checkpoint was given
    let dir = nested.as_deref().unwrap_or(path);
    let files = if dir.is_dir() { weight_files(dir)? } else { vec![path.to_path_buf()] };
    let mut tensors = Tensors::open(&files)?;
    let mut own = header_config(&tensors)?;
    if let Some(text) = text_of(&tensors) {
        // a single file with everything says more than the text encoder's configuration
        own = own.map(|config| if config.get("d_model").is_some() { config } else { config["text_encoder"].clone() });
        tensors = text;
    }
    let config = dir.join("config.json");
    let config = if dir.is_dir() && config.is_file() {
        T5Config::parse(&read_json(&config)?, &format!("`{}`", config.display()))?
    } else if let Some(config) = own.filter(|config| config.get("d_model").is_some()) {
        T5Config::parse(&config, &format!("{}: `config` in its header", tensors.what()))?
    } else {
        T5Config::from_shapes(|name| tensors.shape(name).map(<[usize]>::to_vec), tensors.what())?
    };
    Ok((config, tensors))
}

/// How a transformer is written to a GGUF file: as ComfyUI's users have them, with its configuration.
pub(super) fn transformer_form(config: &TransformerConfig, allowed_sigmas: Option<&[f64]>) -> Form {
    let mut json = json!({ "transformer": config.to_json() });
    if let Some(sigmas) = allowed_sigmas {
        json["allowed_inference_steps"] = json!(sigmas);
    }
    Form {
        architecture: LTX_ARCHITECTURE,
        config: json.to_string(),
        rename: names::transformer_to_official,
        back: names::transformer_from_official,
    }
}

/// How a text encoder is written to a GGUF file: as llama.cpp has it.
pub(super) fn text_form(config: &T5Config) -> Form {
    Form {
        architecture: "t5encoder",
        config: config.to_json().to_string(),
        rename: text::names::to_llama,
        back: text::names::from_llama,
    }
}

/// Quantises a transformer or a text encoder into a GGUF file.
/// - `path`: a file, or a directory of a checkpoint or of one part; of a checkpoint with both it is the transformer, or the
///   text encoder if `text`. Remarks and progress go to `progress`.
/// - Errors when there is no such part, when nothing in it can be quantised, and when `out` exists and not `force`.
pub fn quantize(path: &Path, text: bool, kind: Quantize, out: &Path, force: bool, progress: &Progress) -> Result<()> {
    ensure!(force || out.symlink_metadata().is_err(), "`{}` exists\n  fix: --force replaces it", out.display());
    ensure!(
        !would_replace(out, path),
        "the output `{}` is what is quantised itself\n  fix: give another name with -o",
        out.display()
    );
    ensure!(
        out.extension().is_some_and(|x| x == "gguf"),
        "`{}` does not end in .gguf\n  fix: -o NAME.gguf",
        out.display()
    );
    ensure!(path.exists(), "there is nothing at `{}`\n  fix: give a file or a directory with weights", path.display());
    let (tensors, form, rules) = match open_transformer(path)?.filter(|_| !text) {
        Some((config, sigmas, tensors)) => (tensors, transformer_form(&config, sigmas.as_deref()), &names::QUANTISING),
        None => {
            let (config, tensors) = open_text_encoder(path)?;
            (tensors, text_form(&config), &text::names::QUANTISING)
        }
    };
    tensors.check_form()?;
    let tensors = tensors.quantized(Some(kind.blocks()), rules);
    ensure!(
        tensors.quantized_count() > 0,
        "{}: no matrix in it can be quantised to {}: they are quantised already, or their rows do not divide into blocks of {}\n  fix: use the file as it is",
        tensors.what(),
        kind.name(),
        kind.blocks().values()
    );
    let left = tensors.not_quantized();
    if !left.is_empty() {
        progress.note(&format!("{} matrices stay as they are, for their rows do not divide into blocks", left.len()));
        left.iter().for_each(|name| progress.detail(&format!("not quantised: {name}")));
    }
    let file = AtomicFile::create(out, force)?;
    let mut stage = progress.stage("quantise", tensors.names().count(), "tensors");
    tensors.write_gguf(&file, &form, || stage.advance(1))?;
    stage.finish();
    file.commit()
}

/// A transformer with diffusers' names, and what else its file says of it.
type FoundTransformer = (TransformerConfig, Option<Vec<f64>>, Tensors);

/// The transformer at `path`; `None` where there is none.
fn open_transformer(path: &Path) -> Result<Option<FoundTransformer>> {
    if path.is_dir() {
        let Some(dir) = part_folder(path, "transformer") else { return Ok(None) };
        let config = dir.join("config.json");
        let config = TransformerConfig::parse(&read_json(&config)?, &format!("`{}`", config.display()))?;
        return Ok(Some((config, None, Tensors::open(&weight_files(&dir)?)?)));
    }
    let tensors = Tensors::open(&[path.to_path_buf()])?;
    let transformer = transformer_of(&tensors);
    if !transformer.names().any(|name| name.starts_with("transformer_blocks.")) {
        return Ok(None);
    }
    let (what, config) = (tensors.what().to_string(), header_config(&tensors)?);
    let (json, place) = match config.as_ref().map(|config| config["transformer"].clone()) {
        Some(json) => (json, format!("{what}: `config.transformer` in its header")),
        None => (names::transformer_config_from_shapes(shapes(&transformer), &what)?, what),
    };
    let sigmas = config.and_then(|config| serde_json::from_value(config["allowed_inference_steps"].clone()).ok());
    let transformer = transformer.renamed(|name| Some(names::transformer_from_official(name)));
    let ours = |name: &str| {
        ["transformer_blocks.", "proj_", "time_embed.", "caption_projection.", "scale_shift_table"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let transformer = transformer.renamed(|name| ours(name).then(|| name.to_string()));
    Ok(Some((TransformerConfig::parse(&json, &place)?, sigmas, transformer)))
}
