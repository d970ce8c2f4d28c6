//! `reel models`.

use super::{Failure, print};
use crate::checkpoint::parts;
use crate::device::Quantize;
use crate::progress::Progress;
use crate::weights::{catalogue, pack};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// List the models that reel knows by name
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Pack a diffusers directory, text encoder and tokenizer included, into one .safetensors file
    Pack {
        /// Directory in diffusers layout
        dir: PathBuf,
        /// File to write
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        /// Name to carry in its header, by which `weights.toml` gives it run defaults
        #[arg(long)]
        name: Option<String>,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
    },
    /// Quantise a transformer or a text encoder into a .gguf file
    Quantize {
        /// A .safetensors file, or a directory in diffusers layout
        path: PathBuf,
        /// What its large matrices become
        #[arg(long = "type", value_enum, value_name = "TYPE")]
        kind: Quantize,
        /// File to write
        #[arg(short, long, value_name = "FILE.gguf")]
        out: PathBuf,
        /// Of a checkpoint with both, the text encoder
        #[arg(long)]
        text: bool,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
        /// List what stays as it is
        #[arg(short, long)]
        verbose: bool,
    },
}

pub fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { json } => list(json),
        Verb::Pack { dir, out, name, force } => {
            pack::pack(&dir, &out, name.as_deref(), force).map_err(Failure::BadInput)
        }
        Verb::Quantize { path, kind, out, text, force, verbose } => {
            let progress = Progress { verbose, ..Progress::default() };
            parts::quantize(&path, text, kind, &out, force, &progress).map_err(Failure::BadInput)
        }
    }
}

fn list(json: bool) -> Result<(), Failure> {
    let rows = catalogue::rows();
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|r| {
                serde_json::json!({
                    "name": r.name, "size": r.size, "licence": r.licence, "about": r.about, "embedded": r.embedded,
                })
            })
            .collect();
        return print(format!("{}\n", serde_json::Value::from(rows)).as_bytes());
    }
    let width = |cell: fn(&catalogue::Row) -> &str| rows.iter().map(|r| cell(r).chars().count()).max().unwrap_or(0);
    let (names, sizes) = (width(|r| r.name), width(|r| &r.size));
    let mut text = String::new();
    for row in &rows {
        text.push_str(&format!("{:names$}  {:>sizes$}  {}\n", row.name, row.size, row.about));
        text.push_str(&format!("{:names$}  {:>sizes$}  licence: {}\n", "", "", row.licence));
    }
    print(text.as_bytes())
}
