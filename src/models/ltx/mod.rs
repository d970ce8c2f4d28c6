//! LTX-Video, 0.9.0 to 0.9.8.

pub mod conditioning;
pub mod config;
pub mod cost;
pub mod decoding;
pub mod defaults;
pub mod denoiser;
pub mod names;
pub mod open;
pub mod positions;
pub mod recipe;
pub mod releases;
pub mod schedule;
pub mod sizes;
pub mod transformer;
pub mod two_passes;
pub mod upscale;
pub mod upscaler;
pub mod vae;

use crate::hub::catalogue::Entry;
use crate::job::convention::Convention;
use crate::job::geometry::Geometry;
use crate::models::sizes::Part;
use anyhow::{Context, Result};
use candle_core::DType;
use config::{TransformerConfig, VaeConfig, VaeVersion};
use schedule::SchedulerConfig;
use serde_json::Value;

/// Sizes of a model's networks, and what it says of its noise levels.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub transformer: TransformerConfig,
    pub vae: VaeConfig,
    pub scheduler: SchedulerConfig,
}

impl Config {
    /// Reads off an entry of the catalogue what its model has, before it is here: the released sizes.
    /// - Errors on an entry that does not say which.
    pub fn of_entry(entry: &Entry) -> Result<Self> {
        let sizes = sizes::sizes();
        let config = |name: &str| sizes.iter().find(|size| size.name == name).map(|size| size.config.clone());
        let unknown = || format!("the sizes of `{}` are not known before it is here", entry.name);
        let known = entry.matches.as_ref().with_context(unknown)?;
        let vae = format!("vae-{}", known.vae.as_deref().with_context(unknown)?);
        let vae = VaeConfig::parse(&config(&vae).with_context(unknown)?, &vae)?;
        let mut json = config(if known.layers == Some(48) { "13b" } else { "2b" }).with_context(unknown)?;
        for (key, value) in
            [("num_layers", known.layers), ("num_attention_heads", known.heads), ("attention_head_dim", known.head_dim)]
        {
            json[key] = value.with_context(unknown)?.into();
        }
        json["cross_attention_dim"] = (known.heads.unwrap_or(0) * known.head_dim.unwrap_or(0)).into(); // of every release
        let transformer = TransformerConfig::parse(&json, &format!("the entry `{}` of the catalogue", entry.name))?;
        Ok(Self { transformer, scheduler: SchedulerConfig::of_release(vae.version()), vae })
    }

    /// A configuration with one network of a given size and the newest release's others.
    pub fn with(part: Part, config: &Value, what: &str) -> Result<Self> {
        let sizes = sizes::sizes();
        let newest = |name: &str| sizes.iter().find(|size| size.name == name).map(|size| &size.config);
        let (mut transformer, mut vae) =
            (newest("2b").context("no such size")?, newest("vae-0.9.5").context("no such size")?);
        match part {
            Part::Transformer => transformer = config,
            Part::Vae => vae = config,
            Part::Text => {}
        }
        let (transformer, vae) = (TransformerConfig::parse(transformer, what)?, VaeConfig::parse(vae, what)?);
        Ok(Self { transformer, scheduler: SchedulerConfig::of_release(vae.version()), vae })
    }

    pub fn geometry(&self) -> Geometry {
        let [time, space, _] = self.vae.strides();
        Geometry { time, space }
    }

    /// How the checkpoint was trained to be sampled, by its VAE.
    pub fn convention(&self) -> Convention {
        match self.vae.version() {
            VaeVersion::V090 | VaeVersion::V091 => Convention::Text,
            VaeVersion::V095 => Convention::Condition,
        }
    }

    /// What the release keeps its weights in: 0.9.0 is the only one in f32.
    pub fn released_dtype(&self) -> DType {
        if self.vae.version() == VaeVersion::V090 { DType::F32 } else { DType::BF16 }
    }
}
