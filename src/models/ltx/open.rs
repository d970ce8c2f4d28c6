//! An LTX-Video checkpoint, opened: a directory in diffusers layout, a single file of Lightricks or of ComfyUI, a GGUF file with the
//! VAE beside it.

use crate::job::convention::Convention;
use crate::models::ltx::Config;
use crate::models::ltx::config::{TransformerConfig, VaeConfig};
use crate::models::ltx::names;
use crate::models::ltx::releases::RELEASES;
use crate::models::ltx::schedule::SchedulerConfig;
use crate::models::ltx::sizes;
use crate::models::ltx::transformer::Transformer;
use crate::models::ltx::vae::{Decoder, Encoder, statistics};
use crate::models::parts::{Parts, header_config, part, shapes};
use crate::models::sizes::Part;
use crate::models::text::open::{open_text_encoder, text_of};
use crate::models::text::t5::T5Config;
use crate::models::text::tokenizer::Tokenizer;
use crate::nn::vars::Vars;
use crate::sampling::solver::Schedule;
use crate::weights::config::{Keys, brief};
use crate::weights::open::{Tensors, weight_files};
use crate::weights::rules::GgufForm;
use crate::weights::{part_folder, read_json};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Noise levels that a checkpoint may list, at most.
const MOST_SIGMAS: usize = 1000;

/// Checks that transformer and VAE belong together, and every name and shape in them but for those of the VAE's encoder.
pub fn check(config: &Config, transformer: &Tensors, vae: &Tensors) -> Result<()> {
    let (sizes, latents) = (&config.transformer, config.vae.latent_channels);
    ensure!(
        sizes.in_channels == latents && sizes.out_channels == latents,
        "{}: the transformer reads {} latent channels and makes {}, and the VAE has {latents}\n  fix: use parts of one checkpoint",
        transformer.what(),
        sizes.in_channels,
        sizes.out_channels
    );
    transformer.check(|vb| Transformer::load(sizes, vb))?;
    vae.check(|vb| {
        statistics(&config.vae, vb.clone())?;
        Decoder::load(&config.vae, vb.pp("decoder"))
    })
}

/// What there is to say where a directory names a pipeline of the other convention than its VAE's.
fn otherwise(class: Option<&str>, config: &Config) -> Option<String> {
    let (class, convention) = (class?, config.convention());
    ((class == "LTXConditionPipeline") != (convention == Convention::Condition)).then(|| {
        format!(
            "the checkpoint names `{}`; its VAE is that of {}, so it is sampled by the `{convention}` convention",
            brief(class),
            config.vae.version().name()
        )
    })
}

/// Opens a checkpoint by path.
/// - `with_text`: whether its own text encoder is wanted. `vae`: another VAE than its own.
pub fn checkpoint(path: &Path, with_text: bool, vae: Option<&Path>) -> Result<Parts<Config>> {
    let vae = vae.map(open_vae).transpose()?;
    match path.is_dir() {
        true => directory(path, with_text, vae),
        false => single_file(Tensors::open(&[path.to_path_buf()])?, Some(path), vae),
    }
}

/// Opens a model that is part of the program.
pub fn built_in(file: &'static [u8], vae: Option<&Path>) -> Result<Parts<Config>> {
    let vae = vae.map(open_vae).transpose()?;
    single_file(Tensors::embedded(file, "the embedded model")?, None, vae)
}

/// The last name of a path, in small letters.
fn called(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().to_lowercase())
}

/// A diffusers directory.
fn directory(dir: &Path, with_text: bool, vae: Option<(VaeConfig, Tensors)>) -> Result<Parts<Config>> {
    let index = dir.join("model_index.json");
    let vae_dir = part_folder(dir, "vae");
    let Some(transformer_dir) = part_folder(dir, "transformer").filter(|_| vae.is_some() || vae_dir.is_some()) else {
        bail!(
            "`{}` is not a checkpoint: it lacks the folders `transformer/` and `vae/` of the diffusers layout\n  fix: pass such a directory, or one .safetensors file",
            dir.display()
        )
    };
    let class = if index.is_file() { read_json(&index)?["_class_name"].as_str().map(String::from) } else { None };
    let json = |path: PathBuf| read_json(&path).map(|json| (json, format!("`{}`", path.display())));
    let (transformer, what) = json(transformer_dir.join("config.json"))?;
    let transformer = TransformerConfig::parse(&transformer, &what)?;
    let vae = match (vae, vae_dir) {
        (Some(vae), _) => vae,
        (None, vae_dir) => vae_folder(&vae_dir.unwrap_or_default())?,
    };
    let (scheduler, what) = json(dir.join("scheduler/scheduler_config.json"))?;
    let scheduler = SchedulerConfig::parse(&scheduler, &what)?;
    let called = called(dir);
    let text_dir = part_folder(dir, "text_encoder").filter(|_| with_text);
    let tokenizer = text_dir.as_ref().and_then(|text_dir| {
        part_folder(dir, "tokenizer").and_then(|dir| Tokenizer::find(&dir)).or_else(|| Tokenizer::find(text_dir))
    });
    let config = Config { transformer, vae: vae.0, scheduler };
    Ok(Parts {
        label: None,
        otherwise: otherwise(class.as_deref(), &config),
        config,
        transformer: Tensors::open(&weight_files(&transformer_dir)?)?,
        vae: vae.1,
        allowed_sigmas: None,
        text: text_dir.map(|dir| open_text_encoder(&dir)).transpose()?,
        tokenizer: tokenizer.map(|path| Tokenizer::open(&path)).transpose()?,
        distilled: called.as_ref().is_some_and(|called| called.contains("distilled")),
        called,
        notes: vec![],
        bytes: None,
    })
}

/// One file with everything, or with everything but the text encoder, or with the transformer alone.
/// - `vae`: in place of the file's own.
fn single_file(tensors: Tensors, path: Option<&Path>, vae: Option<(VaeConfig, Tensors)>) -> Result<Parts<Config>> {
    let what = tensors.what().to_string();
    let mut notes = vec![];
    let transformer = transformer_of(&tensors);
    let text = text_of(&tensors);
    let config = header_config(&tensors)?;
    let at = |key: &str| format!("{what}: `{key}` in its header");
    let (transformer_config, own_vae_config, scheduler, allowed_sigmas, text_config);
    match &config {
        Some(config) => {
            let mut keys = Keys::new(config, &at("config"))?;
            keys.ignore(&["_class_name", "_diffusers_version"]);
            transformer_config =
                TransformerConfig::parse(&keys.need::<Value>("transformer")?, &at("config.transformer"))?;
            own_vae_config = keys.get::<Value>("vae")?;
            let json: Option<Value> = keys.get("scheduler")?;
            scheduler = json.map(|json| SchedulerConfig::parse(&json, &at("config.scheduler"))).transpose()?;
            allowed_sigmas = keys.get::<Vec<f64>>("allowed_inference_steps")?.filter(|s| !s.is_empty());
            if let Some(sigmas) = &allowed_sigmas {
                let count = sigmas.len();
                ensure!(
                    count <= MOST_SIGMAS,
                    "{}: it has {count} noise levels, and reel takes at most {MOST_SIGMAS}",
                    at("config.allowed_inference_steps")
                );
                let of = || at("config.allowed_inference_steps");
                Schedule::explicit(sigmas).with_context(of)?;
            }
            let json: Option<Value> = keys.get("text_encoder")?;
            text_config = json.map(|json| T5Config::parse(&json, &at("config.text_encoder"))).transpose()?;
            keys.finish(RELEASES)?;
        }
        None => {
            let json = names::transformer_config_from_shapes(shapes(&transformer), &what);
            let json = json.map_err(|e| match tensors.metadata("general.architecture") {
                Some(of) if of != ARCHITECTURE => anyhow!(
                    "{what} is a GGUF file of the architecture `{}`, and LTX-Video's is `{ARCHITECTURE}`\n  fix: pass a transformer of LTX-Video, or a name of `reel models list`",
                    brief(of)
                ),
                _ => e,
            })?;
            transformer_config = TransformerConfig::parse(&json, &what)?;
            (own_vae_config, scheduler, allowed_sigmas, text_config) = (None, None, None, None);
        }
    }
    let (vae_config, vae) = match vae {
        Some(vae) => vae,
        None if has_vae(&tensors) || path.is_none() => {
            ensure!(config.is_none() || own_vae_config.is_some(), "{}: the key `vae` is missing", at("config"));
            vae_of(&tensors, own_vae_config)?
        }
        None => {
            let found = vae_beside(path.unwrap_or(Path::new("")), &what)?;
            notes.push(format!("VAE: `{}` (found beside the model)", found.display()));
            open_vae(&found)?
        }
    };
    let scheduler = scheduler.unwrap_or_else(|| SchedulerConfig::of_release(vae_config.version()));
    let text = match (text, text_config) {
        (None, _) => None,
        (Some(text), Some(config)) => Some((config, text)),
        (Some(text), None) => Some((T5Config::from_shapes(shapes(&text), &what)?, text)),
    };
    let tokenizer = match tensors.metadata("tokenizer") {
        Some(json) => Some(Tokenizer::from_json(json.as_bytes(), &at("tokenizer"))?),
        None => {
            path.filter(|_| text.is_some()).and_then(Tokenizer::find).map(|path| Tokenizer::open(&path)).transpose()?
        }
    };
    let called = path.and_then(called);
    Ok(Parts {
        label: tensors.metadata("name").map(String::from),
        otherwise: None,
        config: Config { transformer: transformer_config, vae: vae_config, scheduler },
        transformer: transformer.renamed(|name| Some(names::transformer_from_official(name))),
        vae,
        allowed_sigmas,
        text,
        tokenizer,
        distilled: config.is_none() && called.as_ref().is_some_and(|called| called.contains("distilled")),
        called,
        notes,
        bytes: path.and_then(|path| path.metadata().ok()).map(|file| file.len()),
    })
}
/// What GGUF files of the transformer call it.
const ARCHITECTURE: &str = "ltxv";

/// The folder `vae/` of a diffusers directory.
fn vae_folder(dir: &Path) -> Result<(VaeConfig, Tensors)> {
    let path = dir.join("config.json");
    let config = VaeConfig::parse(&read_json(&path)?, &format!("`{}`", path.display()))?;
    Ok((config, Tensors::open(&weight_files(dir)?)?))
}

/// The transformer of a single file, in the file's names.
fn transformer_of(tensors: &Tensors) -> Tensors {
    part(tensors, names::transformer_prefix(tensors.names()))
}

/// Whether a video autoencoder is in the file, below a prefix or by itself.
fn has_vae(tensors: &Tensors) -> bool {
    names::vae_prefix(tensors.names()).is_some()
}

/// The VAE of a single file, in either naming.
fn vae_of(tensors: &Tensors, config: Option<Value>) -> Result<(VaeConfig, Tensors)> {
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
    let released = sizes::sizes().into_iter().filter(|size| size.part == Part::Vae);
    let mut released = released.filter_map(|size| VaeConfig::parse(&size.config, size.name).ok());
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
    statistics(config, vb.clone())?;
    Encoder::load(config, vb.pp("encoder"))?;
    Decoder::load(config, vb.pp("decoder")).map(|_| ())
}

/// `--vae`: a single file with a VAE in it, or a directory.
fn open_vae(path: &Path) -> Result<(VaeConfig, Tensors)> {
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
fn vae_beside(model: &Path, what: &str) -> Result<PathBuf> {
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

/// How a transformer is written to a GGUF file: as ComfyUI's users have them, with its configuration.
pub fn form(config: &TransformerConfig, allowed_sigmas: Option<&[f64]>) -> GgufForm {
    let mut json = json!({ "transformer": config.to_json() });
    if let Some(sigmas) = allowed_sigmas {
        json["allowed_inference_steps"] = json!(sigmas);
    }
    GgufForm {
        architecture: ARCHITECTURE,
        config: json.to_string(),
        rename: names::transformer_to_official,
        back: names::transformer_from_official,
    }
}

/// The transformer at `path`, with diffusers' names, and how it is written to a GGUF file; `None` where there is none.
pub fn transformer(path: &Path) -> Result<Option<(Tensors, GgufForm)>> {
    if path.is_dir() {
        let Some(dir) = part_folder(path, "transformer") else { return Ok(None) };
        let config = dir.join("config.json");
        let config = TransformerConfig::parse(&read_json(&config)?, &format!("`{}`", config.display()))?;
        return Ok(Some((Tensors::open(&weight_files(&dir)?)?, form(&config, None))));
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
    let sigmas: Option<Vec<f64>> =
        config.and_then(|config| serde_json::from_value(config["allowed_inference_steps"].clone()).ok());
    let transformer = transformer.renamed(|name| Some(names::transformer_from_official(name)));
    let ours = |name: &str| {
        ["transformer_blocks.", "proj_", "time_embed.", "caption_projection.", "scale_shift_table"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let transformer = transformer.renamed(|name| ours(name).then(|| name.to_string()));
    Ok(Some((transformer, form(&TransformerConfig::parse(&json, &place)?, sigmas.as_deref()))))
}
