//! Flags that all making verbs share.

use super::{Common, Failure, print};
use crate::device::{Dtype, Quantize};
use crate::folders::Folder;
use crate::models::ltx::Convention;
use crate::plan::{Plan, Report, Tiles};
use crate::platform::machine;
use crate::progress::Progress;
use crate::request::{Lora, Request, Scene};
use clap::builder::{OsStringValueParser, TypedValueParser};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Making {
    /// A name of `reel models list`, a directory in diffusers layout, or one .safetensors or .gguf file [default: tiny, built in]
    #[arg(long, env = "REEL_MODEL", value_name = "NAME|PATH", help_heading = "Model")]
    model: Option<String>,
    /// Fetch what the model's name stands for where it is not here yet
    #[arg(long, help_heading = "Model")]
    pub pull: bool,
    /// T5 weights (.safetensors or .gguf file, a directory, or a name of the list) where the model does not bring its own
    #[arg(long, value_name = "NAME|PATH", help_heading = "Model")]
    text_encoder: Option<PathBuf>,
    /// tokenizer.json or spiece.model, or where one lies [default: beside the text encoder]
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    tokenizer: Option<PathBuf>,
    /// The VAE (.safetensors file or directory) where the model does not bring its own, as .gguf files do not
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    vae: Option<PathBuf>,
    /// Quantise transformer and text encoder as they are loaded
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Model")]
    quantize: Option<Quantize>,
    /// Keep what was quantised on disk, in $XDG_CACHE_HOME/reel, and take it from there next time
    #[arg(long, requires = "quantize", help_heading = "Model")]
    quantize_cache: bool,
    /// A LoRA to add to the transformer, SCALE times [default: 1]; repeatable
    #[arg(long, value_name = "FILE[:SCALE]", help_heading = "Model")]
    lora: Vec<Lora>,
    /// How the checkpoint was trained to be sampled [default: auto, by the VAE]
    #[arg(long, value_enum, value_name = "WHICH", default_value_t, hide_default_value = true, help_heading = "Model")]
    convention: ConventionFlag,

    /// What the video should not show; used when guidance is above 1
    #[arg(long, value_name = "TEXT", help_heading = "Clip")]
    negative: Option<String>,
    /// Width and height in pixels that the model works at
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = size, help_heading = "Clip")]
    size: Option<(usize, usize)>,
    /// Length of the new part in frames
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "seconds", help_heading = "Clip")]
    frames: Option<usize>,
    /// Length of the new part in seconds
    #[arg(long, value_name = "S", allow_negative_numbers = true, help_heading = "Clip")]
    seconds: Option<f64>,
    /// From this time on, in seconds, another prompt; repeatable
    #[arg(long, num_args = 2, value_names = ["TIME", "PROMPT"], help_heading = "Clip")]
    prompt_at: Vec<String>,
    /// The same seed, the same video
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed, help_heading = "Clip")]
    seed: Option<u64>,

    /// Denoising steps
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "sigmas", help_heading = "Sampling")]
    steps: Option<usize>,
    /// Noise levels, falling from at most 1; a closing 0 is added
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', allow_negative_numbers = true, help_heading = "Sampling")]
    sigmas: Option<Vec<f64>>,
    /// How strongly the prompt is followed; 1 means one pass a step
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    guidance: Option<f64>,
    /// Share of the guided velocity brought back to the unguided deviation, 0 to 1
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    guidance_rescale: Option<f64>,
    /// Spatio-temporal guidance: how strongly away from what comes without self-attention in some blocks; 0 is none
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    stg: Option<f64>,
    /// The blocks that --stg leaves self-attention out of
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', allow_negative_numbers = true, help_heading = "Sampling")]
    stg_blocks: Option<Vec<usize>>,
    /// Whether guidance first brings the negative prompt's velocity to the scale of the prompt's (CFG-star)
    #[arg(long, value_enum, value_name = "WHETHER", help_heading = "Sampling")]
    cfg_star: Option<Switch>,
    /// Whether every step draws fresh noise
    #[arg(long, value_enum, value_name = "WHETHER", help_heading = "Sampling")]
    stochastic: Option<Switch>,
    /// A latent upscaler: a first pass at 2/3 of the size, upscaled, then a second pass; `none` makes one pass
    /// [default: the model's]
    #[arg(long, value_name = "PATH|none", help_heading = "Sampling")]
    upscaler: Option<String>,
    /// Noise levels of the second pass, falling from below 1
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', allow_negative_numbers = true, help_heading = "Sampling")]
    second_sigmas: Option<Vec<f64>>,
    /// How far upscaled latents are brought to the first pass's mean and deviation, 0 to 1 [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    adain: Option<f64>,
    /// Compression of strong tones before decoding, 0 to 1
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    tone_map: Option<f64>,
    /// Blur and H.264-like degradation that some weights expect of stills and clips, 0 to 51; 0 is none [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Stills and clips")]
    image_crf: Option<u8>,
    /// Noise on pictures that are held firmly, 0 to 1, which helps motion
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    image_noise: Option<f64>,
    /// Timestep of the decoder, 0 to 1, for VAEs that take one
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    decode_timestep: Option<f64>,
    /// Noise mixed into the latents before decoding [default: the decode timestep]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    decode_noise: Option<f64>,
    /// Frames that the model makes at once; longer clips are made of overlapping windows
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    window: Option<usize>,
    /// Leave the colours and contrasts of later windows as they come
    #[arg(long, help_heading = "Sampling")]
    no_drift_match: bool,

    /// .mp4, .gif, .webp, .png (animated), a directory for PNG frames, or - for Y4M on standard output
    #[arg(short, long, value_name = "PATH", value_parser = OsStringValueParser::new().map(PathBuf::from), help_heading = "Output")]
    out: Option<PathBuf>,
    /// Of .mp4 and .webp, 1 to 100
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u8).range(1..=100), help_heading = "Output")]
    quality: Option<u8>,
    /// Replace an existing output
    #[arg(long, help_heading = "Output")]
    force: bool,

    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "WHERE", default_value = "auto", help_heading = "Machine")]
    device: String,
    /// auto: as stored on a CPU, bf16 on a GPU
    #[arg(long, value_enum, value_name = "TYPE", default_value_t, hide_default_value = true, help_heading = "Machine")]
    dtype: Dtype,
    /// The most memory to use, such as 8GiB [default: what is free, less a margin]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = machine::parse_size, help_heading = "Machine")]
    memory: Option<u64>,
    /// Encode and decode in tiles of this many pixels, or `none` [default: where memory asks for it]
    #[arg(long, value_name = "WxH|none", allow_hyphen_values = true, value_parser = tiles, help_heading = "Machine")]
    vae_tile: Option<Tiles>,
    /// Pixels that neighbouring tiles share [default: a third of the shorter side]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "vae_tile", help_heading = "Machine")]
    vae_overlap: Option<usize>,
    /// Say what the run will take, from file headers alone, and stop
    #[arg(long, help_heading = "Machine")]
    pub dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run", help_heading = "Machine")]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum ConventionFlag {
    #[default]
    Auto,
    /// As diffusers' LTXPipeline: LTX-Video 0.9.0 and 0.9.1
    Text,
    /// As diffusers' LTXConditionPipeline: LTX-Video 0.9.5 on
    Condition,
}

/// A default to be set either way.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

pub fn size(text: &str) -> Result<(usize, usize), String> {
    let sides =
        text.split_once(['x', 'X', '×']).and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    sides.ok_or_else(|| "expected WIDTHxHEIGHT in pixels, such as 704x480".to_string())
}

fn tiles(text: &str) -> Result<Tiles, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Tiles::None);
    }
    let (width, height) = size(text).map_err(|e| format!("{e}, or `none`"))?;
    Ok(Tiles::Of(width, height))
}

/// A seed as torch takes it: negative numbers are read as two's complement.
fn seed(text: &str) -> Result<u64, String> {
    let number = text.parse::<u64>().or_else(|_| text.parse::<i64>().map(|n| n as u64));
    number.map_err(|_| "expected a whole number of at most 64 bits".to_string())
}

impl Making {
    /// The request that these flags make.
    /// - Errors on a `--prompt-at` without a time.
    pub fn request(self, prompt: String) -> anyhow::Result<Request> {
        let mut prompt_at = vec![];
        for pair in self.prompt_at.chunks(2) {
            let [time, prompt] = pair else { anyhow::bail!("--prompt-at takes a time and a prompt") };
            let at = time.strip_suffix('s').unwrap_or(time).parse::<f64>();
            let at = at.map_err(|_| anyhow::anyhow!("--prompt-at {time}: expected seconds, such as 8 or 8.5s"))?;
            prompt_at.push(Scene { at, prompt: prompt.clone() });
        }
        Ok(Request {
            prompt,
            // a variable that is set to nothing counts as not set
            model: self.model.filter(|m| !m.is_empty() || std::env::var_os("REEL_MODEL").is_none_or(|v| !v.is_empty())),
            text_encoder: self.text_encoder,
            tokenizer: self.tokenizer,
            vae: self.vae,
            quantize: self.quantize,
            quantize_cache: if self.quantize_cache { Some(cache_folder()?) } else { None },
            quantize_scratch: cache_folder().ok(),
            lora: self.lora,
            convention: match self.convention {
                ConventionFlag::Auto => None,
                ConventionFlag::Text => Some(Convention::Text),
                ConventionFlag::Condition => Some(Convention::Condition),
            },
            negative: self.negative,
            size: self.size,
            frames: self.frames,
            seconds: self.seconds,
            steps: self.steps,
            sigmas: self.sigmas,
            guidance: self.guidance,
            guidance_rescale: self.guidance_rescale,
            stg: self.stg,
            stg_blocks: self.stg_blocks,
            cfg_star: self.cfg_star.map(|switch| switch == Switch::On),
            stochastic: self.stochastic.map(|switch| switch == Switch::On),
            upscaler: self.upscaler,
            second_sigmas: self.second_sigmas,
            adain: self.adain,
            tone_map: self.tone_map,
            image_crf: self.image_crf,
            image_noise: self.image_noise,
            prompt_at,
            window: self.window,
            no_drift_match: self.no_drift_match,
            decode_timestep: self.decode_timestep,
            decode_noise: self.decode_noise,
            seed: self.seed,
            out: self.out,
            quality: self.quality,
            force: self.force,
            device: Some(self.device),
            dtype: self.dtype,
            memory: self.memory,
            vae_tile: self.vae_tile.unwrap_or_default(),
            vae_overlap: self.vae_overlap,
            ..Default::default()
        })
    }
}

/// Where files are kept that can be made again.
fn cache_folder() -> anyhow::Result<PathBuf> {
    Folder::Cache.path().ok_or_else(|| {
        anyhow::anyhow!(
            "--quantize-cache: no folder for it is known\n  fix: set XDG_CACHE_HOME, or leave --quantize-cache out"
        )
    })
}

/// Fetches the weights of a request, where `--pull` asks for it.
pub fn fetch(pull: bool, request: &Request, progress: &Progress) -> Result<(), Failure> {
    if !pull {
        return Ok(());
    }
    request.check().map_err(Failure::BadInput)?; // before the long part
    super::models::pull_for(request, progress)
}

/// A prompt as given; `-` reads standard input.
pub fn prompt(text: String) -> anyhow::Result<String> {
    if text != "-" {
        return Ok(text);
    }
    let text = std::io::read_to_string(std::io::stdin());
    let text = text.map_err(|e| anyhow::anyhow!("the prompt on standard input is not text: {e}\n  fix: give UTF-8"))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}

/// Prints what `--dry-run` says: data, and so on standard output.
/// - Errors, after that, where the run does not fit the memory that there is.
pub fn print_plan(plan: &Plan, report: &Report, json: bool) -> Result<(), Failure> {
    let text = if json { format!("{}\n", plan.json(report)) } else { plan.table(report) };
    print(text.as_bytes())?;
    report.refusal.as_ref().map_or(Ok(()), |refusal| Err(Failure::BadInput(anyhow::anyhow!("{refusal}"))))
}
