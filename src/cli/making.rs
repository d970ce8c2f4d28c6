//! Flags that all making commands share.

use super::number::{Seed, real, seed, sides, tiles, whole};
use super::{Common, print, print_data};
use crate::job::convention::Convention;
use crate::job::host::Host;
use crate::job::request::{Keyframe, Request, Scene};
use crate::job::sources::Lora;
use crate::job::tiles::Tiles;
use crate::planning::{Plan, Report};
use crate::platform::device::{Dtype, Quantize};
use crate::platform::folders::Folder;
use crate::platform::machine;
use crate::platform::progress::Progress;
use crate::video::resize::{Filter, Fit};
use anyhow::{Context, Result, ensure};
use clap::builder::{OsStringValueParser, TypedValueParser};
use std::io::Read;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Making {
    /// A name of `reel models list`, a directory in diffusers layout, or one .safetensors or .gguf file [default: tiny, built in]
    #[arg(long, env = "REEL_MODEL", hide_env_values = true, value_name = "NAME|PATH", help_heading = "Model")]
    model: Option<String>,
    /// Fetch what the model's name stands for where it is not here yet
    #[arg(long, help_heading = "Model", hide_short_help = true)]
    pub pull: bool,
    /// T5 weights (.safetensors or .gguf file, a directory, or a name of the list) where the model does not bring its own
    /// [default: the model's, in the type that fits]
    #[arg(long, value_name = "NAME|PATH", help_heading = "Model", hide_short_help = true)]
    text_encoder: Option<PathBuf>,
    /// tokenizer.json or spiece.model, or the folder of one [default: beside the text encoder]
    #[arg(long, value_name = "PATH", help_heading = "Model", hide_short_help = true)]
    tokenizer: Option<PathBuf>,
    /// The VAE (.safetensors file or directory) where the model does not bring its own, as .gguf files do not
    #[arg(long, value_name = "PATH", help_heading = "Model", hide_short_help = true)]
    vae: Option<PathBuf>,
    /// Quantise transformer and text encoder as they are loaded [default: as stored]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Model")]
    quantize: Option<Quantize>,
    /// Keep what was quantised on disk, in $XDG_CACHE_HOME/reel, and take it from there next time
    #[arg(long, requires = "quantize", help_heading = "Model", hide_short_help = true)]
    quantize_cache: bool,
    /// A LoRA to add to the transformer, SCALE times [default: 1]; repeatable
    #[arg(long, value_name = "FILE[:SCALE]", help_heading = "Model", hide_short_help = true)]
    lora: Vec<Lora>,
    /// How the checkpoint was trained to be sampled [default: auto, by the VAE]
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        default_value_t,
        hide_default_value = true,
        help_heading = "Model",
        hide_short_help = true
    )]
    convention: ConventionFlag,

    /// What the video should not show; used when guidance is above 1 [default: the model's, else nothing]
    #[arg(long, value_name = "TEXT", help_heading = "Clip", hide_short_help = true)]
    negative: Option<String>,
    /// Width and height in pixels that the model works at [default: the model's, in the shape of a still; built in: 64x64]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = sides("size"), help_heading = "Clip")]
    size: Option<(usize, usize)>,
    /// Length of the new part in frames [default: the model's; built in: 17]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<usize>("frames"), conflicts_with = "seconds", help_heading = "Clip", hide_short_help = true)]
    frames: Option<usize>,
    /// Length of the new part in seconds, in place of --frames
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = real("seconds"), help_heading = "Clip")]
    seconds: Option<f64>,
    /// From this time on, in seconds, another prompt; repeatable
    #[arg(long, num_args = 2, allow_negative_numbers = true, value_names = ["TIME", "PROMPT"], help_heading = "Clip", hide_short_help = true)]
    prompt_at: Vec<String>,
    /// The same seed, the same video; -1 draws one [default: drawn, and said]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed, help_heading = "Clip")]
    seed: Option<Seed>,

    /// Denoising steps [default: the model's; built in: 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "sigmas", value_parser = whole::<usize>("steps"), help_heading = "Sampling")]
    steps: Option<usize>,
    /// Noise levels, falling from at most 1; a closing 0 is added [default: as many as --steps]
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', allow_negative_numbers = true, value_parser = real("sigmas"), help_heading = "Sampling", hide_short_help = true)]
    sigmas: Option<Vec<f64>>,
    /// How strongly the prompt is followed; 1 means one pass a step [default: the model's; built in: 3]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("guidance"), help_heading = "Sampling")]
    guidance: Option<f64>,
    /// Share of the guided velocity brought back to the unguided deviation, 0 to 1 [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("guidance-rescale"), help_heading = "Sampling", hide_short_help = true)]
    guidance_rescale: Option<f64>,
    /// Spatio-temporal guidance: how strongly away from what comes without self-attention in some blocks; 0 is none
    /// [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("stg"), help_heading = "Sampling", hide_short_help = true)]
    stg: Option<f64>,
    /// The blocks that --stg leaves self-attention out of [default: the model's]
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', allow_negative_numbers = true, value_parser = whole::<usize>("stg-blocks"), help_heading = "Sampling", hide_short_help = true)]
    stg_blocks: Option<Vec<usize>>,
    /// Whether guidance first brings the negative prompt's velocity to the scale of the prompt's (CFG-star)
    /// [default: the model's, else off]
    #[arg(long, value_enum, value_name = "WHETHER", help_heading = "Sampling", hide_short_help = true)]
    cfg_star: Option<Switch>,
    /// Whether every step draws fresh noise [default: the model's, else off]
    #[arg(long, value_enum, value_name = "WHETHER", help_heading = "Sampling", hide_short_help = true)]
    stochastic: Option<Switch>,
    /// A latent upscaler: a first pass at 2/3 of the size, upscaled, then a second pass; `none` makes one pass
    /// [default: the model's]
    #[arg(long, value_name = "PATH|none", help_heading = "Sampling", hide_short_help = true)]
    upscaler: Option<String>,
    /// Noise levels of the second pass, falling from below 1 [default: the model's]
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', allow_negative_numbers = true, value_parser = real("second-sigmas"), help_heading = "Sampling", hide_short_help = true)]
    second_sigmas: Option<Vec<f64>>,
    /// How far upscaled latents are brought to the first pass's mean and deviation, 0 to 1 [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("adain"), help_heading = "Sampling", hide_short_help = true)]
    adain: Option<f64>,
    /// Compression of strong tones before decoding, 0 to 1 [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("tone-map"), help_heading = "Sampling", hide_short_help = true)]
    tone_map: Option<f64>,
    /// Blur and H.264-like degradation that some weights expect of stills and clips, 0 to 51; 0 is none [default: the model's, else 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<u8>("image-crf"), help_heading = "Stills and clips", hide_short_help = true)]
    image_crf: Option<u8>,
    /// Noise on pictures that are held firmly, 0 to 1, which helps motion [default: the model's, else 0.15]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("image-noise"), help_heading = "Sampling", hide_short_help = true)]
    image_noise: Option<f64>,
    /// Timestep of the decoder, 0 to 1, for VAEs that take one [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("decode-timestep"), help_heading = "Sampling", hide_short_help = true)]
    decode_timestep: Option<f64>,
    /// Noise mixed into the latents before decoding [default: the decode timestep]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = real("decode-noise"), help_heading = "Sampling", hide_short_help = true)]
    decode_noise: Option<f64>,
    /// Frames that the model makes at once; longer clips are made of overlapping windows [default: the model's, else 257]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<usize>("window"), help_heading = "Sampling", hide_short_help = true)]
    window: Option<usize>,
    /// Leave the colours and contrasts of later windows as they come
    #[arg(long, help_heading = "Sampling", hide_short_help = true)]
    no_drift_match: bool,

    /// .mp4, .gif, .webp, .png (animated), a directory for PNG frames, or - for Y4M on standard output
    /// [default: a name of prompt and seed]
    #[arg(short, long, value_name = "PATH", value_parser = OsStringValueParser::new().map(PathBuf::from), help_heading = "Output")]
    out: Option<PathBuf>,
    /// Quality of .mp4 and .webp, 1 to 100 [default: 85; where footage goes on, 95]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<u8>("quality"), help_heading = "Output", hide_short_help = true)]
    quality: Option<u8>,
    /// Replace an existing output
    #[arg(long, help_heading = "Output")]
    force: bool,

    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "WHERE", default_value = "auto", help_heading = "Machine", hide_short_help = true)]
    device: String,
    /// Type of the arithmetic [default: auto, as stored on a CPU, bf16 on a GPU]
    #[arg(
        long,
        value_enum,
        value_name = "TYPE",
        default_value_t,
        hide_default_value = true,
        help_heading = "Machine",
        hide_short_help = true
    )]
    dtype: Dtype,
    /// The most memory to use, such as 8GiB [default: what is free, less a margin]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = machine::parse_size, help_heading = "Machine", hide_short_help = true)]
    memory: Option<u64>,
    /// Encode and decode in tiles of this many pixels, or `none` [default: where memory asks for it]
    #[arg(long, value_name = "WxH|none", allow_hyphen_values = true, value_parser = tiles, help_heading = "Machine", hide_short_help = true)]
    vae_tile: Option<Tiles>,
    /// Pixels that neighbouring tiles share [default: a third of the shorter side]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "vae_tile", value_parser = whole::<usize>("vae-overlap"), help_heading = "Machine", hide_short_help = true)]
    vae_overlap: Option<usize>,
    /// Say what the run will take, from file headers alone, and stop
    #[arg(long, help_heading = "Machine")]
    pub dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run", help_heading = "Machine", hide_short_help = true)]
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

impl Making {
    /// The request that these flags make, with the command's own, and what they say of the machine.
    /// - Errors on a `--prompt-at` without a time.
    pub fn request(self, prompt: String, own: Own) -> Result<(Request, Host)> {
        // without `..`, here and below: a flag that reaches no request does not compile
        let Self {
            model,
            pull: _,
            text_encoder,
            tokenizer,
            vae,
            quantize,
            quantize_cache,
            lora,
            convention,
            negative,
            size,
            frames,
            seconds,
            prompt_at,
            seed,
            steps,
            sigmas,
            guidance,
            guidance_rescale,
            stg,
            stg_blocks,
            cfg_star,
            stochastic,
            upscaler,
            second_sigmas,
            adain,
            tone_map,
            image_crf,
            image_noise,
            decode_timestep,
            decode_noise,
            window,
            no_drift_match,
            out,
            quality,
            force,
            device,
            dtype,
            memory,
            vae_tile,
            vae_overlap,
            dry_run: _,
            json: _,
            common: _,
        } = self;
        let Own { image, last_image, keyframe, fit, fps, scale, scale_filter } = own;
        let scene = |pair: &[String]| {
            let [time, prompt] = pair else { anyhow::bail!("--prompt-at takes a time and a prompt") };
            let at = time.strip_suffix('s').unwrap_or(time);
            let at = real("prompt-at")(at).map_err(|e| {
                let fix = "give seconds, such as 8 or 8.5s, and then the prompt";
                anyhow::anyhow!("--prompt-at does not take `{time}`: {e}\n  fix: {fix}")
            })?;
            Ok(Scene { at, prompt: prompt.clone() })
        };
        let host = Host {
            device: Some(device),
            memory,
            quantize_cache: if quantize_cache { Some(cache_folder()?) } else { None },
            quantize_scratch: cache_folder().ok(),
            out,
            force,
        };
        let request = Request {
            prompt,
            // a variable that is set to nothing counts as not set
            model: model.filter(|m| !m.is_empty() || std::env::var_os("REEL_MODEL").is_none_or(|v| !v.is_empty())),
            text_encoder,
            tokenizer,
            vae,
            quantize,
            lora,
            convention: match convention {
                ConventionFlag::Auto => None,
                ConventionFlag::Text => Some(Convention::Text),
                ConventionFlag::Condition => Some(Convention::Condition),
            },
            negative,
            size,
            frames,
            seconds,
            fps,
            steps,
            sigmas,
            guidance,
            guidance_rescale,
            stg,
            stg_blocks,
            cfg_star: cfg_star.map(|switch| switch == Switch::On),
            stochastic: stochastic.map(|switch| switch == Switch::On),
            upscaler,
            second_sigmas,
            adain,
            tone_map,
            image,
            last_image,
            keyframe,
            fit,
            image_crf,
            image_noise,
            prompt_at: prompt_at.chunks(2).map(scene).collect::<Result<_>>()?,
            window,
            no_drift_match,
            decode_timestep,
            decode_noise,
            seed: match seed {
                Some(Seed::Given(seed)) => Some(seed),
                Some(Seed::Drawn) | None => None,
            },
            scale,
            scale_filter,
            quality,
            dtype,
            vae_tile: vae_tile.unwrap_or_default(),
            vae_overlap,
        };
        Ok((request, host))
    }
}

/// What a request takes from flags that not all making commands have.
#[derive(Default)]
pub struct Own {
    pub image: Option<PathBuf>,
    pub last_image: Option<PathBuf>,
    pub keyframe: Vec<Keyframe>,
    pub fit: Fit,
    pub scale: Option<usize>,
    pub scale_filter: Option<Filter>,
    pub fps: Option<f64>,
}

/// Where files are kept that can be made again.
fn cache_folder() -> Result<PathBuf> {
    Folder::Cache.path().ok_or_else(|| {
        anyhow::anyhow!(
            "--quantize-cache: no folder for it is known\n  fix: set XDG_CACHE_HOME, or leave --quantize-cache out"
        )
    })
}

/// Fetches the weights of a request, where `--pull` asks for it.
pub fn fetch(pull: bool, request: &Request, host: &Host, progress: &Progress) -> Result<()> {
    if !pull {
        return Ok(());
    }
    request.check()?; // before the long part
    super::models::pull_for(request, host, progress)
}

/// The most bytes that are read of a prompt: no model reads a hundredth of it.
const LONGEST_PROMPT: u64 = 64 << 10;

/// A prompt as given; `-` reads standard input.
pub fn prompt(text: String) -> Result<String> {
    if text != "-" {
        return Ok(text);
    }
    let mut bytes = vec![];
    let read = std::io::stdin().lock().take(LONGEST_PROMPT + 1).read_to_end(&mut bytes);
    read.context("cannot read the prompt on standard input")?;
    typed(&bytes)
}

/// The prompt that standard input holds.
/// - Errors on what is too long, no text, or nothing.
fn typed(bytes: &[u8]) -> Result<String> {
    ensure!(
        bytes.len() as u64 <= LONGEST_PROMPT,
        "the prompt on standard input is longer than {} kB\n  fix: give a shorter one; a model reads the first 128 or 256 tokens, about as many words",
        LONGEST_PROMPT >> 10
    );
    let units = |bytes: &[u8], big: bool| {
        let unit = |pair: &[u8]| {
            if big { u16::from_be_bytes([pair[0], pair[1]]) } else { u16::from_le_bytes([pair[0], pair[1]]) }
        };
        bytes.len().is_multiple_of(2).then(|| bytes.chunks_exact(2).map(unit).collect::<Vec<u16>>())
    };
    let wide = |bytes: &[u8], big: bool| units(bytes, big).and_then(|units| String::from_utf16(&units).ok());
    // editors of Windows begin a file with a mark of its encoding
    let text = match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        [0xFF, 0xFE, rest @ ..] => wide(rest, false),
        [0xFE, 0xFF, rest @ ..] => wide(rest, true),
        bytes => String::from_utf8(bytes.to_vec()).ok(),
    };
    let text = text.filter(|text| !text.contains('\0'));
    let text = text.context("the prompt on standard input is not text\n  fix: give UTF-8, or UTF-16 with its mark")?;
    ensure!(
        !text.trim().is_empty(),
        "the prompt on standard input is empty\n  fix: write it there, or give it as an argument (\"\" for none)"
    );
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}

/// Prints what `--dry-run` says: data, and so on standard output.
/// - Errors, after that, where the run does not fit the memory that there is.
pub fn print_plan(plan: &Plan, report: &Report, json: bool) -> Result<()> {
    if json { print_data(&format!("{}\n", plan.json(report))) } else { print(plan.table(report).as_bytes()) }?;
    report.refusal.as_ref().map_or(Ok(()), |refusal| Err(anyhow::anyhow!("{refusal}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_prompt_is_text_of_some_length() {
        let wide = |text: &str, order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(order).collect()
        };
        let good: [Vec<u8>; 4] = [
            b"a red ball\r\n".to_vec(),
            b"\xEF\xBB\xBFa red ball\n".to_vec(),
            wide("a red ball\r\n", u16::to_le_bytes),
            wide("a red ball\n", u16::to_be_bytes),
        ];
        good.iter().for_each(|bytes| assert_eq!(typed(bytes).unwrap(), "a red ball", "{bytes:?}"));
        assert_eq!(typed("Größe 赤\nzwei\n".as_bytes()).unwrap(), "Größe 赤\nzwei");
        let bad: [(Vec<u8>, &str); 9] = [
            (vec![], "empty"),
            (b" \n\t\r\n".to_vec(), "empty"),
            (wide("", u16::to_le_bytes), "empty"),
            (b"a \xff\xfe ball".to_vec(), "not text"),
            (b"a\0ball".to_vec(), "not text"),
            (b"a\0 \0b\0".to_vec(), "not text"),
            (wide("ball", u16::to_le_bytes)[..9].to_vec(), "not text"),
            (vec![0xFF, 0xFE, 0x00, 0xD8], "not text"),
            (vec![b'x'; (64 << 10) + 1], "64 kB"),
        ];
        for (bytes, words) in bad {
            let error = typed(&bytes).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("\n  fix: ") && error.len() < 300, "{error}");
        }
        assert!(typed(&vec![b'x'; 64 << 10]).is_ok());
    }
}
