//! `reel bench`.

use super::number::{sides, whole};
use super::{BAD_INPUT, print, print_data};
use crate::bench::{Cell, Part, Row, Weights, parts, random_size, run};
use crate::job::geometry::Extent;
use crate::job::sources::Sources;
use crate::models::bundle::Checkpoint;
use crate::models::sizes::Part as SizedPart;
use crate::models::text::tokenizer::Tokenizer;
use crate::planning::settings::default_size;
use crate::platform::device::{self, Dtype, Quantize};
use crate::platform::fault::{Fault, Mark};
use crate::platform::progress::{counted, human_bytes};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// Twenty words, as people write them.
const PROMPT: &str = "A small red fishing boat rocks on a calm green sea at dawn while white gulls circle above it";

/// Time the stages on this machine, each by itself and in a process of its own
///
/// Lists (1,2 or a,b) and repeated flags are expanded to a grid.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// A name of `reel models list`, a .safetensors file, or a directory in diffusers layout [default: the built-in model]
    #[arg(long, value_name = "NAME|PATH", env = "REEL_MODEL", hide_env_values = true, help_heading = "What")]
    model: Option<String>,
    /// The model's text encoder, where it brings none
    #[arg(long, value_name = "PATH", conflicts_with = "random_weights", help_heading = "What")]
    text_encoder: Option<PathBuf>,
    /// The model's VAE, where it brings none
    #[arg(long, value_name = "PATH", conflicts_with = "random_weights", help_heading = "What")]
    vae: Option<PathBuf>,
    /// Random weights of a real size instead: 2b, 13b, t5-xxl, vae-0.9.0, vae-0.9.1, vae-0.9.5 (up to 0.9.8)
    #[arg(long, value_name = "SIZE", value_delimiter = ',', help_heading = "What")]
    random_weights: Vec<String>,
    /// Which stages [default: all that the weights have]
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',', help_heading = "What")]
    part: Vec<Part>,
    /// So many layers of random weights, where not all fit the memory
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<u16>("layers"), help_heading = "What")]
    layers: Option<u16>,

    /// Width and height in pixels [default: the model's; 512x320 with random weights]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = sides("size"), value_delimiter = ',', help_heading = "Grid")]
    size: Vec<(usize, usize)>,
    /// Frames [default: the model's; 25 with random weights]
    #[arg(long, value_name = "N", value_delimiter = ',', allow_negative_numbers = true, value_parser = whole::<u32>("frames"), help_heading = "Grid")]
    frames: Vec<u32>,
    /// auto: as stored; random weights are bf16
    #[arg(long, value_enum, value_name = "TYPE", value_delimiter = ',', help_heading = "Grid")]
    dtype: Vec<Dtype>,
    /// Quantise transformer and text encoder
    #[arg(long, value_enum, value_name = "TYPE", value_delimiter = ',', help_heading = "Grid")]
    quantize: Vec<Quantize>,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_delimiter = ',', allow_negative_numbers = true, value_parser = whole::<u16>("threads"), help_heading = "Grid")]
    threads: Vec<u16>,
    /// Tokens of the prompt [default: those of 20 words for text, 128 for a step]
    #[arg(long, value_name = "N", value_delimiter = ',', allow_negative_numbers = true, value_parser = whole::<u16>("tokens"), help_heading = "Grid")]
    tokens: Vec<u16>,

    /// Runs before the clock starts
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = whole::<u16>("warmup"), help_heading = "Clock")]
    warmup: u16,
    /// Runs that are timed; their median counts
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true, value_parser = whole::<u16>("repeat"), help_heading = "Clock")]
    repeat: u16,

    /// Denoising steps of a whole run [default: the model's]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<u16>("steps"), help_heading = "Grid")]
    steps: Option<u16>,
    /// The most memory that a whole run may use, such as 8GiB [default: what is free, less a margin]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = crate::platform::machine::parse_size, help_heading = "Grid")]
    memory: Option<u64>,

    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "WHERE", default_value = "auto", help_heading = "Clock")]
    device: String,
    /// One JSON object a row
    #[arg(long, conflicts_with = "csv", help_heading = "Output")]
    json: bool,
    /// Comma-separated values, with a header
    #[arg(long, help_heading = "Output")]
    csv: bool,
}

/// Bytes that a part takes at the very least.
fn least_bytes(part: Part, clip: Extent) -> u64 {
    let plane = clip.width as u64 * clip.height as u64;
    let frames = clip.frames as u64;
    match part {
        Part::Text | Part::Product | Part::Run => 0, // of no size, or planned
        Part::Step => 4 * plane * frames,
        Part::Encode => 12 * plane * frames,        // RGB in f32
        Part::Decode => 32 * plane * frames.min(9), // the last layers of a group of frames: 128 channels at a quarter of the sides
        Part::Mux => 3 * plane * frames,
    }
}

/// - Errors when a part cannot fit the memory that is free, before any of it is asked for.
fn check_memory(part: Part, clip: Extent) -> Result<()> {
    let (least, free) = (least_bytes(part, clip), crate::platform::machine::free_memory().unwrap_or(u64::MAX));
    ensure!(
        least <= free,
        "--part {} of {}x{}, {} takes at least {}, and {} are free\n  fix: a smaller --size, or fewer --frames",
        part.name(),
        clip.width,
        clip.height,
        counted(clip.frames, "frames"),
        human_bytes(least),
        human_bytes(free)
    );
    Ok(())
}

/// One row to come.
struct Spec {
    cell: Cell,
    dtype: Dtype,
    threads: Option<u16>,
}

pub fn run_all(args: Args) -> Result<()> {
    let specs = args.grid()?;
    let mut rows = vec![];
    if let [spec] = specs.as_slice() {
        rows.push(one(spec, &args.device)?);
    } else {
        // a process each: peak memory belongs to one row, and threads are set once
        for spec in &specs {
            let row = child(spec, &args.device)?;
            if args.json {
                print_data(&format!("{row}\n"))?; // as they come
            }
            rows.push(row);
        }
        if args.json {
            return Ok(());
        }
    }
    match (args.json, args.csv) {
        (true, _) => print_data(&rows.iter().map(|row| format!("{row}\n")).collect::<String>()),
        (_, true) => print_data(&csv(&rows)),
        _ => print(table(&rows).as_bytes()),
    }
}

/// Times one row here.
fn one(spec: &Spec, device: &str) -> Result<Value> {
    super::start_threads(spec.threads)?; // the row says how many there are
    let compute = device::open(device, spec.dtype)?;
    if let Some(remark) = &compute.remark {
        bail!("{remark}\n  fix: --device cpu, which is then what is timed");
    }
    run(&spec.cell, &compute).map(|row: Row| row.json())
}

/// Times one row in a process of its own.
fn child(spec: &Spec, device: &str) -> Result<Value> {
    let cell = &spec.cell;
    let mut command = Command::new(std::env::current_exe().context("cannot find the program itself")?);
    command.args(["bench", "--json", "--device", device, "--part", cell.part.name()]);
    match &cell.weights {
        Weights::Model(name) => command.args(["--model", name]),
        Weights::Random(name) => command.args(["--random-weights", name]),
    };
    for (flag, path) in [("--text-encoder", &cell.text_encoder), ("--vae", &cell.vae)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command.args([name, &value]);
        }
    };
    flag("--layers", cell.layers.map(|n| n.to_string()));
    flag("--size", Some(format!("{}x{}", cell.clip.width, cell.clip.height)));
    flag("--frames", Some(cell.clip.frames.to_string()));
    flag("--tokens", Some(cell.tokens.to_string()));
    flag("--dtype", clap::ValueEnum::to_possible_value(&spec.dtype).map(|value| value.get_name().to_string()));
    flag("--quantize", cell.quantize.map(|kind| kind.name().to_string()));
    flag("--threads", spec.threads.map(|n| n.to_string()));
    flag("--steps", cell.steps.map(|n| n.to_string()).filter(|_| cell.part == Part::Run));
    flag("--memory", cell.memory.map(|n| format!("{n}b")).filter(|_| cell.part == Part::Run));
    flag("--warmup", Some(cell.warmup.to_string()));
    flag("--repeat", Some(cell.repeat.to_string()));
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot run the program again")?;
    if !output.status.success() {
        let fault = if output.status.code() == Some(BAD_INPUT.into()) { Fault::Input } else { Fault::Machine };
        return Err(anyhow!("the row `{}` of {:?} failed", cell.part.name(), cell.weights)).fault(fault);
    }
    serde_json::from_slice(&output.stdout).context("the row's answer cannot be read").fault(Fault::Machine)
}

impl Args {
    /// Every combination.
    /// - Errors on unknown names and on parts that the weights do not have.
    fn grid(&self) -> Result<Vec<Spec>> {
        let model = self.model.clone().filter(|m| !m.is_empty());
        // what the environment says gives way to what was typed
        let typed = model.as_ref().is_some_and(|m| std::env::var("REEL_MODEL").ok().as_ref() != Some(m));
        ensure!(
            self.random_weights.is_empty() || !typed,
            "--model and --random-weights are two answers to one question\n  fix: leave one out"
        );
        let layered = |name: &String| Ok::<_, anyhow::Error>(random_size(name)?.part != SizedPart::Vae);
        for name in &self.random_weights {
            ensure!(
                self.layers.is_none() || layered(name)?,
                "--layers: {name} has no layers to leave out\n  fix: leave it out"
            );
        }
        ensure!(
            self.layers.is_none() || !self.random_weights.is_empty(),
            "--layers is for random weights: a model runs whole\n  fix: --random-weights, or leave it out"
        );
        let weights: Vec<Weights> = if self.random_weights.is_empty() {
            vec![Weights::Model(model.unwrap_or_else(|| crate::embedded::NAME.to_string()))]
        } else {
            self.random_weights.iter().map(|name| Weights::Random(name.to_lowercase())).collect()
        };
        let whole = self.part.is_empty() && self.random_weights.is_empty() || self.part.contains(&Part::Run);
        for (given, flag) in [(self.steps.is_some(), "--steps"), (self.memory.is_some(), "--memory")] {
            ensure!(whole || !given, "{flag} is for a whole run\n  fix: --part run, or leave it out");
        }
        let mut specs = vec![];
        for weights in &weights {
            let has = parts(weights)?;
            let (size, frames) = self.defaults(weights)?;
            let sizes = if self.size.is_empty() { vec![size] } else { self.size.clone() };
            let frames = match self.frames.as_slice() {
                [] => vec![frames],
                list => list.iter().map(|n| *n as usize).collect(),
            };
            let wanted = if self.part.is_empty() { has.clone() } else { self.part.clone() };
            ensure!(
                self.quantize.is_empty() || wanted.iter().any(|part| self.quantized(*part) != [None]),
                "--quantize: there is nothing to quantise in {}\n  fix: leave it out",
                wanted.iter().map(|part| part.name()).collect::<Vec<_>>().join(" and ")
            );
            for part in wanted {
                ensure!(
                    has.contains(&part) || part == Part::Product,
                    "{weights:?} has no part `{}`\n  choices: {}",
                    part.name(),
                    has.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
                );
                // a product has no clip and a text no size
                let clips: Vec<Extent> = match part {
                    Part::Text | Part::Product => {
                        vec![Extent { width: sizes[0].0, height: sizes[0].1, frames: frames[0] }]
                    }
                    _ => {
                        let each =
                            |&(width, height)| frames.iter().map(move |&frames| Extent { width, height, frames });
                        sizes.iter().flat_map(each).collect()
                    }
                };
                let tokens: Vec<usize> = match (self.tokens.as_slice(), part) {
                    ([], Part::Text) => vec![Tokenizer::builtin_t5()?.encode(PROMPT, 256)?.ids.len()],
                    ([], _) => vec![128],
                    (list, Part::Text | Part::Step) => list.iter().map(|n| *n as usize).collect(),
                    (list, _) => vec![list[0] as usize],
                };
                for clip in &clips {
                    check_memory(part, *clip)?;
                    for &tokens in &tokens {
                        for &dtype in if self.dtype.is_empty() { &[Dtype::Auto][..] } else { &self.dtype } {
                            for quantize in self.quantized(part) {
                                for threads in self.threads() {
                                    let cell = Cell {
                                        part,
                                        weights: weights.clone(),
                                        text_encoder: self.text_encoder.clone(),
                                        vae: self.vae.clone(),
                                        clip: *clip,
                                        tokens,
                                        layers: self.layers.map(usize::from),
                                        quantize,
                                        steps: self.steps.map(usize::from),
                                        memory: self.memory,
                                        warmup: self.warmup as usize,
                                        repeat: self.repeat as usize,
                                    };
                                    specs.push(Spec { cell, dtype, threads });
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(specs)
    }

    /// The quantisations of a part; a VAE has none, nor has the writing of files.
    fn quantized(&self, part: Part) -> Vec<Option<Quantize>> {
        match part {
            Part::Text | Part::Step | Part::Run | Part::Product if !self.quantize.is_empty() => {
                self.quantize.iter().map(|kind| Some(*kind)).collect()
            }
            _ => vec![None],
        }
    }

    fn threads(&self) -> Vec<Option<u16>> {
        if self.threads.is_empty() { vec![None] } else { self.threads.iter().map(|n| Some(*n)).collect() }
    }

    /// Size and frames where none are given.
    fn defaults(&self, weights: &Weights) -> Result<((usize, usize), usize)> {
        const RANDOM: ((usize, usize), usize) = ((512, 320), 25);
        let Weights::Model(model) = weights else { return Ok(RANDOM) };
        if !self.size.is_empty() && !self.frames.is_empty() || self.part == [Part::Product] {
            return Ok(RANDOM); // not asked for
        }
        let sources = Sources {
            model,
            text_encoder: self.text_encoder.as_deref(),
            vae: self.vae.as_deref(),
            ..Sources::default()
        };
        let checkpoint = Checkpoint::open(&sources)?;
        let (run, family) = (checkpoint.run_defaults(), checkpoint.config.family());
        Ok((default_size(&run, family), run.frames.unwrap_or(family.defaults().clip.frames)))
    }
}

/// A heading, and how a row shows under it.
type Column = (&'static str, fn(&Value) -> String);

/// Columns of the table.
const COLUMNS: [Column; 11] = [
    ("part", |row| word(&row["part"])),
    ("weights", |row| {
        let layers = row["layers"].as_u64().map(|n| format!(" ({n} layers)")).unwrap_or_default();
        let random = if row["random"] == true { "random " } else { "" };
        format!("{random}{}{layers}", word(&row["weights"]))
    }),
    ("clip", |row| match (row["size"].as_str(), row["frames"].as_u64()) {
        (Some(size), Some(frames)) => format!("{size}x{frames}"),
        _ => String::new(),
    }),
    ("tokens", |row| word(&row["tokens"])),
    ("type", |row| match row["blocks"].as_str() {
        Some(kind) => format!("{kind} in {}", word(&row["dtype"])),
        None => word(&row["dtype"]),
    }),
    ("threads", |row| word(&row["threads"])),
    ("seconds", |row| row["seconds"].as_f64().map(seconds).unwrap_or_default()),
    ("±", |row| row["spread"].as_f64().map(seconds).unwrap_or_default()),
    ("GFLOP/s", |row| row["gflops"].as_f64().map(|n| format!("{n:.1}")).unwrap_or_default()),
    ("of peak", |row| row["share"].as_f64().map(|n| format!("{:.0} %", n * 100.0)).unwrap_or_default()),
    ("memory", |row| row["peak_memory"].as_f64().map(|n| format!("{:.2} GB", n / 1e9)).unwrap_or_default()),
];

fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{s:.4}") } else { format!("{s:.2}") }
}

fn table(rows: &[Value]) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| COLUMNS.iter().map(|(_, show)| show(row)).collect()).collect();
    // what no row says is no column
    let shown: Vec<usize> = (0..COLUMNS.len()).filter(|&i| cells.iter().any(|row| !row[i].is_empty())).collect();
    let width = |i: usize| cells.iter().map(|row| row[i].chars().count()).chain([COLUMNS[i].0.chars().count()]).max();
    let line = |texts: &dyn Fn(usize) -> String| {
        let all = shown.iter().map(|&i| {
            let width = width(i).unwrap_or(0);
            if i < 3 { format!("{:width$}", texts(i)) } else { format!("{:>width$}", texts(i)) }
        });
        format!("{}\n", all.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head = line(&|i| COLUMNS[i].0.to_string());
    let mut text = head;
    for row in &cells {
        text += &line(&|i| row[i].clone());
    }
    for stage in rows.iter().filter_map(|row| row["stages"].as_array()).flatten() {
        let size = |key: &str| stage[key].as_u64().map(crate::platform::progress::human_bytes).unwrap_or_default();
        text += &format!(
            "  {:8} planned {:>8}  measured {:>8}  {} s\n",
            word(&stage["stage"]),
            size("planned"),
            size("memory"),
            stage["seconds"].as_f64().map(seconds).unwrap_or_default()
        );
    }
    if let Some(peak) = rows.iter().filter_map(|row| row["peak_gflops"].as_f64()).next() {
        text += &format!(
            "\nCPU: {}; peak of the first row's type and threads: {peak:.0} GFLOP/s\n",
            crate::nn::kernel::cpu_path()
        );
    }
    text
}

fn csv(rows: &[Value]) -> String {
    let Some(Value::Object(first)) = rows.first() else { return String::new() };
    let names: Vec<&String> = first.keys().filter(|name| *name != "runs").collect();
    let mut text = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",") + "\n";
    for row in rows {
        let quoted = |name: &&String| {
            let text = word(&row[name.as_str()]);
            if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
        };
        text += &(names.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n");
    }
    text
}
