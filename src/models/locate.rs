//! Where the files are that `--model` and `--text-encoder` name.

use crate::hub::catalogue::{self, Entry, Kind};
use crate::hub::store::{self, Store};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Where a model's files are.
#[derive(Default)]
pub struct Place {
    /// `None`: in the program.
    pub path: Option<PathBuf>,
    /// What the catalogue adds to the file of a name.
    pub text_encoder: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub entry: Option<&'static Entry>,
}

/// What `--model` means: a catalogue name, or else a path.
/// - `text_encoder`: another one that is given, a path or a name.
pub fn locate(model: &str, text_encoder: Option<&Path>, notes: &mut Vec<String>) -> Result<Place> {
    let path = Path::new(model);
    match catalogue::find(model) {
        Ok(entry) if entry.embedded => Ok(Place { entry: Some(entry), ..Place::default() }),
        Ok(entry) => pulled(entry, text_encoder, notes),
        Err(_) if path.exists() => Ok(Place { path: Some(path.to_path_buf()), ..Place::default() }),
        Err(of_hub) if !catalogue::of_repository(model).is_empty() => Err(of_hub),
        Err(_) if model.contains(['/', '\\']) || model.ends_with(".safetensors") || model.ends_with(".gguf") => {
            bail!(
                "there is no checkpoint at `{model}`: no such file or directory\n  fix: give --model a .safetensors or .gguf file, a directory, or a name of `reel models list`; what is on the hub under another name has to be downloaded first"
            )
        }
        Err(unknown) => Err(unknown),
    }
}

/// The files that a name is opened from, all of which have to be here.
fn pulled(entry: &'static Entry, text_encoder: Option<&Path>, notes: &mut Vec<String>) -> Result<Place> {
    let store = Store::from_env()?;
    let named = text_encoder.and_then(named_text_encoder);
    let mut parts = store.parts(entry, named);
    parts.retain(|(part, _)| text_encoder.is_none() || named.is_some() || part.kind != Kind::TextEncoder);
    let to_pull: Vec<&Entry> = parts.iter().filter(|(_, path)| path.is_none()).map(|(part, _)| *part).collect();
    // whether an upscaler is needed is known when the run is
    parts.retain(|(part, _)| part.kind != Kind::Upscaler);
    let missing: Vec<&Entry> = to_pull.iter().copied().filter(|part| part.kind != Kind::Upscaler).collect();
    missing.iter().try_for_each(|part| store.sound(part).map(|_| ()))?;
    if !missing.is_empty() {
        let each: Vec<String> = missing
            .iter()
            .map(|part| format!("`{}`, {}, licence: {}", part.name, part.size_text(), part.licence))
            .collect();
        let upscaler = to_pull.iter().find(|part| part.kind == Kind::Upscaler);
        let upscaler = upscaler.map(|part| format!(" with `{}`", part.name)).unwrap_or_default();
        let with = named.map(|encoder| format!(" --text-encoder {}", encoder.name)).unwrap_or_default();
        bail!(
            "the weights of `{}` are not here ({})\n  fix: `reel models pull {}{with}` fetches them ({} in all{upscaler}), or the same command with --pull",
            entry.name,
            each.join("; "),
            entry.name,
            store::size_of(to_pull.iter().copied())
        );
    }
    parts.iter().for_each(|(part, _)| notes.extend(store.look(part).remarks));
    let find = |kind: Kind| parts.iter().find(|(part, _)| part.kind == kind).map(|(part, path)| (*part, path.clone()));
    let path_of = |kind: Kind| find(kind).and_then(|(_, path)| path);
    if let (Some((variant, _)), Some(own)) = (find(Kind::TextEncoder), &entry.text_encoder)
        && variant.name != *own
        && named.is_none()
    {
        notes.push(format!("text encoder: `{}` (`{own}` is not here)", variant.name));
    }
    Ok(Place {
        path: path_of(Kind::Model),
        text_encoder: path_of(Kind::TextEncoder),
        tokenizer: path_of(Kind::Tokenizer),
        entry: Some(entry),
    })
}

/// Returns the text encoder of the catalogue that `--text-encoder` names; `None` for a path.
pub fn named_text_encoder(given: &Path) -> Option<&'static Entry> {
    let entry = given.to_str().and_then(catalogue::named)?;
    (entry.kind == Kind::TextEncoder && !given.exists()).then_some(entry)
}

/// What `--text-encoder` means: a path, or else a catalogue name.
pub fn locate_text_encoder(given: &Path) -> Result<PathBuf> {
    match named_text_encoder(given) {
        Some(entry) => Store::from_env()?.sound(entry)?.with_context(|| store::not_here(entry)),
        None => Ok(given.to_path_buf()),
    }
}
