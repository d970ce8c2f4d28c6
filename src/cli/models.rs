//! `reel models`.

mod info;
mod list;
mod text;

use super::{Common, print, print_exact};
use crate::hub::catalogue::{self, Entry, Kind};
use crate::hub::store::{self, State, Store, Verdict};
use crate::job::host::Host;
use crate::job::request::Request;
use crate::models::pack;
use crate::models::quantize;
use crate::planning::forecast;
use crate::platform::device::Quantize;
use crate::platform::fault::{Fault, Mark};
use crate::platform::progress::{Progress, human_bytes};
use anyhow::{Result, anyhow, bail};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the models that reel knows by name: what they take, what is here of them, and where to start
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say all that is known of a model or a part: files, hashes, licence, what it is run with, memory, time
    Info {
        /// One of `reel models list`
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch a model with all that it is run with, or one part of it; goes on where an earlier pull broke off
    Pull(Pull),
    /// Compare the files that are here with their SHA-256
    Verify {
        /// One of `reel models list`, and what it is run with [default: all that are here]
        name: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Print where a file is
    Path {
        /// One of `reel models list`
        name: String,
    },
    /// Delete a file, and the bytes that nothing else uses
    Remove {
        /// One of `reel models list`
        name: String,
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
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
pub struct Pull {
    /// One of `reel models list`
    name: String,
    /// A text encoder of the list, in place of the model's own
    #[arg(long, value_name = "NAME")]
    text_encoder: Option<String>,
    /// Go on where the hub has another SHA-256 or size than the catalogue knows
    #[arg(long)]
    accept_hash: bool,
    #[command(flatten)]
    common: Common,
}

pub fn run(command: Command, progress: &Progress) -> Result<()> {
    match command {
        Command::List { json } => list::list(json, progress),
        Command::Info { name, json } => info::info(&name, json),
        Command::Pull(args) => {
            args.common.start(progress)?;
            pull(&args.name, args.text_encoder.as_deref(), args.accept_hash, progress)
        }
        Command::Verify { name, common } => {
            common.start(progress)?;
            verify(name.as_deref(), progress)
        }
        Command::Path { name } => path(&name),
        Command::Remove { name } => remove(&name),
        Command::Pack { dir, out, name, force } => pack::pack(&dir, &out, name.as_deref(), force),
        Command::Quantize { path, kind, out, text, force, common } => {
            common.start(progress)?;
            quantize::quantize(&path, text, kind, &out, force, progress)
        }
    }
}

impl Command {
    /// Flags about talking and threads, of those that take long.
    pub fn common(&self) -> Option<&Common> {
        match self {
            Command::Pull(args) => Some(&args.common),
            Command::Verify { common, .. } | Command::Quantize { common, .. } => Some(common),
            _ => None,
        }
    }
}

fn open() -> Result<Store> {
    Store::from_env()
}

fn named(name: &str) -> Result<&'static Entry> {
    catalogue::find_any(name)
}

/// Fetches what a name is run with.
/// - `text_encoder`: a name in place of the model's own.
pub fn pull(name: &str, text_encoder: Option<&str>, accept_hash: bool, progress: &Progress) -> Result<()> {
    let entry = named(name)?;
    let encoder = text_encoder.map(named).transpose()?;
    if let Some(encoder) = encoder
        && (encoder.kind != Kind::TextEncoder || entry.kind != Kind::Model)
    {
        let what = format!(
            "--text-encoder {} does not go with `{name}`\n  fix: give the name of a model, and of a text encoder",
            encoder.name
        );
        bail!(what);
    }
    let store = open()?;
    let parts: Vec<&Entry> = store.parts(entry, encoder).into_iter().map(|(part, _)| part).collect();
    store.pull(&parts, accept_hash, progress)
}

/// `--pull`: fetches what `--model` and `--text-encoder` name and is not here.
pub fn pull_for(request: &Request, host: &Host, progress: &Progress) -> Result<()> {
    let named = |name: Option<&str>, kind: Kind| name.and_then(catalogue::named).filter(|entry| entry.kind == kind);
    let encoder = named(request.text_encoder.as_deref().and_then(|path| path.to_str()), Kind::TextEncoder);
    let model = named(request.model.as_deref(), Kind::Model);
    let store = open()?;
    let mut parts = match (model, encoder) {
        (Some(model), None) => {
            let compute = crate::platform::device::open(host.device(), request.dtype)?;
            let chosen = forecast::encoder(request, host, &compute)?;
            if let Some(chosen) = chosen.as_ref().filter(|chosen| !chosen.here && chosen.why.is_some()) {
                progress.note(&format!("text encoder: {}", chosen.describe()));
            }
            store.parts(model, chosen.map(|chosen| chosen.entry))
        }
        (Some(model), encoder) => store.parts(model, encoder),
        (None, Some(encoder)) => vec![(encoder, store.find(encoder))],
        (None, None) => vec![],
    };
    // an encoder by path leaves the model's own out
    let by_path = request.text_encoder.is_some() && encoder.is_none();
    parts.retain(|(part, path)| path.is_none() && !part.embedded && !(by_path && part.kind == Kind::TextEncoder));
    let parts: Vec<&Entry> = parts.into_iter().map(|(part, _)| part).collect();
    store.pull(&parts, false, progress)
}

fn verify(name: Option<&str>, progress: &Progress) -> Result<()> {
    let store = open()?;
    let here = |entry: &Entry| matches!(store.state(entry), State::Here { .. } | State::Damaged { .. });
    let entries: Vec<&Entry> = match name {
        Some(name) => {
            let parts = store.parts(named(name)?, None).into_iter().map(|(part, _)| part);
            parts.filter(|part| !part.embedded && (part.name == name || here(part))).collect()
        }
        None => catalogue::entries().iter().filter(|entry| here(entry)).collect(),
    };
    let total = entries.iter().map(|entry| match store.state(entry) {
        State::Here { bytes, .. } => bytes,
        _ => 0,
    });
    let mut stage = progress.bytes("verify", total.sum());
    let (mut report, mut damaged) = (String::new(), vec![]);
    for entry in &entries {
        let found = store.look(entry);
        found.remarks.iter().for_each(|remark| stage.note(remark));
        if !here(entry) {
            bail!(store::not_here(entry));
        }
        let said = match store.verify(entry, |n| stage.advance(n))? {
            Verdict::Whole { of } => format!("whole (SHA-256 as {of} says)"),
            Verdict::WholeByGit => "whole (git's hash as the hub says)".to_string(),
            Verdict::Own { sha256 } => {
                let hash = if progress.is_verbose() { sha256 } else { store::short(&sha256) };
                format!("as downloaded on this machine; nobody else vouches for it (SHA-256 {hash})")
            }
            Verdict::Unknown { sha256 } => format!("nobody says what it should be; SHA-256 {sha256}"),
            Verdict::Damaged { what, hashes } => {
                hashes.iter().filter(|_| progress.is_verbose()).for_each(|hashes| stage.note(hashes));
                damaged.push(entry.name.as_str());
                format!("damaged: {what}")
            }
        };
        report.push_str(&format!("{}: {said}\n", entry.name));
    }
    stage.finish();
    if entries.is_empty() {
        report.push_str("nothing is here to verify\n");
    }
    print(report.as_bytes())?;
    match damaged.first() {
        None => Ok(()),
        Some(first) => Err(anyhow!(
            "{} of {} files {} damaged: {}\n  fix: `reel models remove {first}`, then `reel models pull {first}`",
            damaged.len(),
            entries.len(),
            if damaged.len() == 1 { "is" } else { "are" },
            damaged.join(", ")
        ))
        .fault(Fault::Machine),
    }
}

fn path(name: &str) -> Result<()> {
    let entry = named(name)?;
    if entry.embedded {
        bail!("`{name}` is part of the program, and has no file");
    }
    let store = open()?;
    match store.find(entry) {
        // as it is: `$(reel models path NAME)` has to open it
        Some(path) => print_exact(&[path.as_os_str().as_encoded_bytes(), b"\n"].concat()),
        None => bail!(store.lack(entry)),
    }
}

fn remove(name: &str) -> Result<()> {
    let entry = named(name)?;
    let store = open()?;
    let removed = store.remove(entry)?;
    if !removed.any {
        return print(format!("{name}: nothing of it is here\n").as_bytes());
    }
    let mut text = format!("{name}: removed, {} freed\n", human_bytes(removed.bytes));
    if !removed.used_by.is_empty() {
        text.push_str(&format!("its bytes are also those of {} and stay\n", removed.used_by.join(", ")));
    }
    for (part, path) in store.parts(entry, None) {
        if path.is_some() && part.name != entry.name {
            text.push_str(&format!("`{}` stays; `reel models remove {}` frees it\n", part.name, part.name));
        }
    }
    print(text.as_bytes())
}

/// What is here of an entry, as JSON names it: the state, the file's path, its bytes.
fn named_state(entry: &Entry, state: &State) -> (&'static str, Option<String>, u64) {
    match state {
        State::Here { path, bytes } => ("here", Some(path.display().to_string()), *bytes),
        State::Damaged { bytes, .. } => ("damaged", None, *bytes),
        State::Partly { bytes } => ("partly", None, *bytes),
        State::Absent if entry.embedded => ("here", None, 0),
        State::Absent => ("absent", None, 0),
    }
}

fn kind(entry: &Entry) -> &'static str {
    match entry.kind {
        Kind::Model => "model",
        Kind::TextEncoder => "text-encoder",
        Kind::Upscaler => "upscaler",
        Kind::Tokenizer => "tokenizer",
    }
}
