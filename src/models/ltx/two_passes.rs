//! Whether a clip is made in two passes, and how large each is.

use crate::hub::catalogue::{self, Entry, Kind};
use crate::hub::store;
use crate::job::convention::Convention;
use crate::job::geometry::{Extent, Geometry};
use crate::job::request::Request;
use crate::models::ltx::upscale::Upscaler;
use crate::platform::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// The upscaler of a run in two passes: the one asked for, or the model's own.
/// - `entry`: the model's, where it has one. `channels`: of its latents. `pulled`: where an entry's file is, if it is here.
/// - Errors when the model is run in two passes and its upscaler is not there: one pass is something to ask for.
pub fn upscaler(
    request: &Request,
    entry: Option<&Entry>,
    channels: usize,
    convention: Convention,
    pulled: impl Fn(&Entry) -> Result<Option<PathBuf>>,
) -> Result<Option<Upscaler>> {
    match (request.upscaler.as_deref(), entry.filter(|entry| entry.run.in_two_passes())) {
        (Some("none"), _) | (None, None) => Ok(None),
        (Some(path), _) => {
            ensure!(
                convention == Convention::Condition,
                "--upscaler {path}: this checkpoint's latents are none that an upscaler was made for\n  fix: use a model from 0.9.5 on, or leave it out"
            );
            let named =
                catalogue::named(path).filter(|entry| entry.kind == Kind::Upscaler && !Path::new(path).exists());
            let path = match named {
                Some(entry) => pulled(entry)?.with_context(|| store::not_here(entry))?,
                None => PathBuf::from(path),
            };
            Upscaler::open(&path, channels).map(Some)
        }
        (None, Some(entry)) => {
            let name = &entry.name;
            let Some(own) = entry.upscaler.as_deref().and_then(catalogue::named) else {
                let known = catalogue::entries().iter().find(|entry| entry.kind == Kind::Upscaler);
                let such = known.map(|known| format!(", such as `{}`,", known.name)).unwrap_or_default();
                bail!(
                    "`{name}` is run in two passes, and names no `upscaler` to go between them\n  fix: pass one{such} with --upscaler, or make one pass with --upscaler none, or name it in the entry of weights.toml"
                )
            };
            if let Some(path) = pulled(own)? {
                return Upscaler::open(&path, channels).map(Some);
            }
            let (upscaler, size, licence) = (&own.name, own.size_text(), &own.licence);
            bail!(
                "`{name}` is run in two passes with `{upscaler}` ({size}, {licence}) between them, which is not here\n  fix: `reel models pull {upscaler}`, or pass it with --upscaler FILE, or make one pass with --upscaler none"
            )
        }
    }
}

/// The first of two passes: sides in whole latents, rounded down, so a small one may come to nothing.
/// - `legal`: the whole. `factor`: sides of the first pass, of the whole.
/// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `LTXMultiScalePipeline.__call__`, at 5260738.
fn shrunk(legal: Extent, geometry: Geometry, factor: f64) -> Extent {
    let side = |side: usize| (side as f64 * factor) as usize / geometry.space * geometry.space;
    Extent { width: side(legal.width), height: side(legal.height), ..legal }
}

/// What the first and the second of two passes make.
pub fn sizes(legal: Extent, geometry: Geometry, downscale: f64) -> [Extent; 2] {
    let first = shrunk(legal, geometry, downscale);
    [first, Extent { width: 2 * first.width, height: 2 * first.height, ..first }]
}

/// What each of two passes makes.
/// - `factor`: sides of the first, of the whole.
/// - Errors when the first would come to nothing.
pub fn canvases(legal: Extent, geometry: Geometry, factor: f64, progress: &Progress) -> Result<Vec<Extent>> {
    let [first, second] = sizes(legal, geometry, factor);
    ensure!(
        first.width > 0 && first.height > 0,
        "{}x{} is too small for two passes: the first is made at {factor:.2} of it, in whole {} pixels\n  fix: a larger --size, or --upscaler none",
        legal.width,
        legal.height,
        geometry.space
    );
    progress.note(&format!(
        "two passes: {}x{}, then {}x{}, brought to {}x{}",
        first.width, first.height, second.width, second.height, legal.width, legal.height
    ));
    Ok(vec![first, second])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_pass_is_rounded_down() {
        let first =
            |width, height| shrunk(Extent { width, height, frames: 9 }, Geometry { time: 8, space: 32 }, 0.6666666);
        assert_eq!(first(1216, 704), Extent { width: 800, height: 448, frames: 9 });
        assert_eq!((first(96, 64).width, first(96, 32).height), (32, 0)); // two thirds of 96 are less than 64
    }

    /// A recipe of two passes never becomes one of one pass by itself.
    #[test]
    fn a_recipe_without_its_upscaler_is_an_error() {
        let find = |model: &str, asked: Option<&str>| {
            let request = Request { upscaler: asked.map(String::from), ..Default::default() };
            upscaler(&request, Some(catalogue::find(model).unwrap()), 128, Convention::Condition, |_| Ok(None))
        };
        for model in ["ltx-2b-0.9.8-distilled", "ltx-13b-0.9.8-dev", "ltx-13b-0.9.7-distilled"] {
            let error = find(model, None).err().unwrap().to_string();
            for word in [model, "ltx-spatial-upscaler-0.9.8", "--upscaler FILE", "--upscaler none"] {
                assert!(error.contains(word), "{error}");
            }
            assert!(find(model, Some("none")).unwrap().is_none());
        }
        assert!(find("ltx-2b-0.9.6-distilled", None).unwrap().is_none());
        assert!(find("tiny", Some("no-such-file")).is_err());
    }

    #[test]
    fn an_entry_that_names_no_upscaler_is_told_so() {
        let named = catalogue::find("ltx-2b-0.9.8-distilled").unwrap();
        let entry = Entry { name: "mine".to_string(), upscaler: None, ..named.clone() };
        let error =
            upscaler(&Request::default(), Some(&entry), 128, Convention::Condition, |_| Ok(None)).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("`mine`") && error.contains("such as `ltx-spatial-upscaler-0.9.8`"), "{error}");
        assert!(!error.contains("models pull"), "{error}");
    }

    #[test]
    fn a_store_that_cannot_be_opened_is_no_absent_file() {
        let entry = catalogue::find("ltx-2b-0.9.8-distilled").unwrap();
        let broken = |_: &Entry| bail!("no home folder");
        let error = upscaler(&Request::default(), Some(entry), 128, Convention::Condition, broken).err().unwrap();
        assert_eq!(error.to_string(), "no home folder");
    }
}
