//! Suggests reel's flags and commands for those of other programs.

use clap::Command;

/// Names of a flag in other programs, reel's long flag for it (empty where there is none), and the text to suggest. In the text,
/// `{X|}` becomes the value given on the command line, or the placeholder `X` where there is none.
type Hint = (&'static [&'static str], &'static str, &'static str);

const CUDA: &str = match cfg!(feature = "cuda") {
    true => "--device cuda",
    false => {
        "--device cuda, in a build with it, as this one is not: in reel's source, `cargo build --release --features cuda`"
    }
};
const METAL: &str = match cfg!(feature = "metal") {
    true => "--device metal",
    false => {
        "--device metal, in a build with it, as this one is not: in reel's source, `cargo build --release --features metal`"
    }
};

const FLAGS: &[Hint] = &[
    (
        &["--width", "--height", "-W", "-H", "--resolution", "--res", "--dimensions", "--aspect-ratio", "--ratio"],
        "size",
        "--size {WxH|}",
    ),
    (
        &["--cfg", "--cfg-scale", "--guidance-scale", "--cfg-guidance", "--prompt-strength"],
        "guidance",
        "--guidance {X|}",
    ),
    (&["--gpu", "--gpus", "--cuda", "--use-gpu", "--n-gpu-layers", "-ngl"], "device", CUDA),
    (&["--cpu", "--no-gpu", "--use-cpu"], "device", "--device cpu"),
    (&["--mps", "--metal"], "device", METAL),
    (&["--fp16", "--half", "--float16"], "dtype", "--dtype f16"),
    (&["--bf16", "--bfloat16"], "dtype", "--dtype bf16"),
    (&["--fp32", "--float32", "--no-half"], "dtype", "--dtype f32"),
    (&["--precision", "--type", "--weight-dtype"], "dtype", "--dtype f32, bf16 or f16"),
    (&["--duration", "--length", "--secs", "--time", "-t"], "seconds", "--seconds {S|}"),
    (&["--num-frames", "--n-frames", "--video-frames", "--frame-count", "--nframes", "-f"], "frames", "--frames {N|}"),
    (&["--frame-rate", "--framerate", "--rate", "-r"], "fps", "--fps {F|}"),
    (
        &["--num-inference-steps", "--inference-steps", "--sampling-steps", "--sample-steps", "--num-steps"],
        "steps",
        "--steps {N|}",
    ),
    (&["--negative-prompt", "--neg-prompt", "--neg", "--nprompt"], "negative", "--negative \"TEXT\""),
    (&["--random-seed", "--noise-seed", "--rng-seed"], "seed", "--seed {N|}"),
    (
        &[
            "--output",
            "--output-path",
            "--output-file",
            "--out-file",
            "--outfile",
            "--output-dir",
            "--save",
            "--save-path",
        ],
        "out",
        "-o {PATH|}",
    ),
    (&["-y", "--yes", "--overwrite", "--replace", "--clobber"], "force", "--force"),
    (
        &[
            "--input",
            "--input-image",
            "--init-image",
            "--init-img",
            "--image-path",
            "--start-image",
            "--first-image",
            "--first-frame",
            "-i",
            "--img",
            "--picture",
        ],
        "image",
        "--image {FILE|}",
    ),
    (
        &["--end-image", "--end-img", "--last-frame", "--tail-image", "--end-frame"],
        "last-image",
        "--last-image {FILE|}",
    ),
    (&["--image-url", "--url"], "image", "--image FILE, of a file that is here: addresses are not fetched"),
    (
        &["--strength", "--denoise", "--denoising-strength", "--image-strength"],
        "keyframe",
        "--keyframe FILE@FRAME:{X|}, a strength for each still",
    ),
    (&["--lora-scale", "--lora-weight", "--lora-path", "--lora-model-dir"], "lora", "--lora FILE:SCALE"),
    (
        &["--scheduler", "--sampler", "--sampling-method"],
        "stochastic",
        "--stochastic on or off, --steps N, or --sigmas A,B,…",
    ),
    (
        &["--max-memory", "--vram", "--ram", "--low-vram", "--lowvram", "--medvram", "--offload", "--cpu-offload"],
        "memory",
        "--memory SIZE, such as 8GiB: the run is cut to it",
    ),
    (&["--tiling", "--vae-tiling", "--tile-size", "--tile"], "vae-tile", "--vae-tile WxH"),
    (
        &[
            "--checkpoint",
            "--ckpt",
            "--ckpt-path",
            "--checkpoint-path",
            "--model-path",
            "--model-id",
            "--diffusion-model",
            "-m",
        ],
        "model",
        "--model {NAME|}",
    ),
    (&["--t5", "--t5xxl", "--t5-xxl", "--clip", "--text-encoder-path"], "text-encoder", "--text-encoder {PATH|}"),
    (&["--vae-path"], "vae", "--vae {PATH|}"),
    (&["--quant", "--quantization", "--q"], "quantize", "--quantize {TYPE|}"),
    (&["--format", "--codec", "--ext", "--extension"], "out", "the ending of -o says it: .mp4, .gif, .webp, .png"),
    (&["--crf", "--bitrate"], "quality", "--quality 1 to 100"),
    (&["--download", "--fetch"], "pull", "--pull"),
    (&["--num-threads", "--n-threads", "--jobs", "-j"], "threads", "--threads {N|}"),
    (
        &["--loop", "--looping", "--seamless", "--repeat"],
        "",
        "`reel loop CLIP` makes the end of a clip lead back to its start; .gif, .webp and .png play over and over by themselves",
    ),
    (&["--upscale", "--upscale-factor", "--enlarge"], "scale", "--scale {N|}"),
    (&["--silent"], "quiet", "-q"),
    (&["--debug"], "verbose", "-v"),
    (
        &["-n", "--batch", "--batch-size", "--num-videos", "--num-outputs", "--samples", "--n-samples", "--count"],
        "",
        "one clip is made a run: run it again with another --seed",
    ),
    (&["--prompt", "--text", "-p"], "", "the prompt stands by itself, without a flag: reel {COMMAND} … \"PROMPT\""),
];

/// Names of a command in other programs, and reel's command for it; `NAME` becomes the next argument.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["list", "ls", "models-list", "list-models"], "`reel models list`"),
    (&["pull", "download", "fetch", "install", "get"], "`reel models pull NAME`"),
    (&["rm", "remove", "delete", "uninstall"], "`reel models remove NAME`"),
    (&["verify"], "`reel models verify NAME`"),
    (&["path", "where", "which"], "`reel models path NAME`"),
    (&["quantize", "quantise", "convert"], "`reel models quantize`"),
    (&["pack"], "`reel models pack`"),
    (&["info", "show", "inspect"], "`reel models info NAME` tells of a model; of a clip only the player does"),
    (&["play", "view", "open", "preview"], "open the file in a browser or a player: reel only makes it"),
    (
        &[
            "run",
            "gen",
            "create",
            "make",
            "txt2vid",
            "t2v",
            "text2video",
            "text-to-video",
            "txt2video",
            "video",
            "sample",
            "infer",
        ],
        "`reel generate \"PROMPT\"`",
    ),
    (&["img2vid", "i2v", "image2video", "image-to-video", "animate"], "`reel generate \"PROMPT\" --image FILE`"),
    (&["continue", "prolong", "outpaint", "expand"], "`reel extend CLIP \"PROMPT\"`"),
    (&["interpolate", "join", "transition", "morph"], "`reel bridge A B \"PROMPT\"`"),
    (&["cycle", "repeat"], "`reel loop CLIP`"),
    (
        &["upscale", "enlarge", "upsample", "resize", "superres", "super-resolution"],
        "`reel generate \"PROMPT\" --scale 2` enlarges what it makes; a clip that is there: `ffmpeg -i IN -vf scale=2*iw:-2 OUT`",
    ),
    (&["test", "check", "doctor"], "`reel selftest`"),
    (&["benchmark"], "`reel bench`"),
    (&["version"], "`reel --version`"),
    (&["license", "licence", "licences", "notices"], "`reel licenses`"),
    (&["completion"], "`reel completions SHELL`"),
];

/// As [`COMMANDS`], for the subcommands of `reel models`.
const MODELS: &[(&[&str], &str)] = &[
    (&["download", "fetch", "install", "get", "add"], "`reel models pull NAME`"),
    (&["rm", "delete", "uninstall"], "`reel models remove NAME`"),
    (&["ls"], "`reel models list`"),
    (&["show", "inspect"], "`reel models info NAME`"),
    (&["check"], "`reel models verify NAME`"),
    (&["where", "which"], "`reel models path NAME`"),
    (&["quantise", "convert"], "`reel models quantize`"),
];

/// Suggests a flag of reel's for an unknown one.
/// - `typed`: the unknown flag. `command`: the command that it was passed to; only flags that it takes are suggested. `path`: that
///   command's full name, such as `reel generate`. `args`: all arguments.
pub fn flag(typed: &str, command: &Command, path: &str, args: &[String]) -> Option<String> {
    let has = |flag: &str| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
    if typed == "-s" && has("size") {
        return Some(short_s(value(typed, args)));
    }
    let name = typed.replace('_', "-").to_lowercase();
    let is = |hint: &&Hint| hint.0.contains(&typed) || hint.0.contains(&name.as_str());
    let &(_, flag, fix) = FLAGS.iter().find(is)?;
    if !flag.is_empty() && !has(flag) {
        return None;
    }
    if flag == "size" {
        let side = |names: [&str; 2]| {
            names.iter().find_map(|name| value(name, args)).filter(|side| side.parse::<u16>().is_ok())
        };
        if let (Some(width), Some(height)) = (side(["--width", "-W"]), side(["--height", "-H"])) {
            return Some(format!("--size {width}x{height}"));
        }
    }
    let fix = fix.replace("{COMMAND}", path.strip_prefix("reel ").unwrap_or("generate"));
    let Some((before, rest)) = fix.split_once('{') else { return Some(fix) };
    let (placeholder, after) = rest.split_once("|}")?;
    let plain =
        |value: &String| !value.is_empty() && value.chars().all(|c| c.is_alphanumeric() || "._/-:@,".contains(c));
    let given = value(typed, args).filter(plain).filter(|given| flag != "size" || given.contains('x'));
    Some(format!("{before}{}{after}", given.unwrap_or(placeholder.to_string())))
}

/// Suggests a flag for `-s`, which is the size in `ffmpeg`, and the seed or the steps elsewhere.
fn short_s(given: Option<String>) -> String {
    let number = |text: &str| !text.is_empty() && text.len() < 20 && text.bytes().all(|b| b.is_ascii_digit());
    match given {
        Some(size) if size.split_once('x').is_some_and(|(w, h)| number(w) && number(h)) => format!("--size {size}"),
        Some(n) if number(&n) => format!("--seed {n}, or --steps {n}"),
        _ => "--size WxH, --seed N or --steps N".to_string(),
    }
}

/// Returns a flag's value: the argument after it, or the text after its `=`.
fn value(flag: &str, args: &[String]) -> Option<String> {
    let at =
        args.iter().position(|arg| arg == flag || arg.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))?;
    match args[at].split_once('=') {
        Some((_, value)) => Some(value.to_string()),
        None => args.get(at + 1).filter(|next| !next.starts_with('-')).cloned(),
    }
}

/// Suggests a command of reel's for an unknown one.
/// - `path`: the parent command, `reel` or `reel models`. `rest`: the arguments from the unknown command on.
pub fn command(path: &str, rest: &[String]) -> Option<String> {
    let typed = rest.first()?;
    let table = if path == "reel models" { MODELS } else { COMMANDS };
    let lower = typed.to_lowercase();
    if let Some((_, fix)) = table.iter().find(|(names, _)| names.contains(&lower.as_str())) {
        let next = rest.get(1).filter(|next| next.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
        let next = next.filter(|next| !next.starts_with('-'));
        return Some(fix.replace("NAME", next.map_or("NAME", String::as_str)));
    }
    // a prompt without `generate` before it, quoted or not
    let words: Vec<&String> = rest.iter().take_while(|arg| !arg.starts_with('-')).collect();
    let is_prompt = path == "reel" && (typed.contains(' ') || words.len() > 2);
    let prompt =
        || words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" ").replace(['"', '`', '$', '\\'], "");
    is_prompt.then(|| format!("reel generate \"{}\"", crate::platform::shown::beginning(&prompt(), 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every suggested flag exists, every foreign name stands in the table once, and none is a name of reel's own.
    #[test]
    fn hints_name_flags_that_exist() {
        use clap::CommandFactory;
        let root = crate::cli::Cli::command();
        let generate = root.find_subcommand("generate").unwrap();
        let mut typed: Vec<&str> = vec![];
        for (names, flag, _) in FLAGS {
            assert!(flag.is_empty() || generate.get_arguments().any(|arg| arg.get_long() == Some(*flag)), "--{flag}");
            typed.extend(*names);
        }
        for name in &typed {
            assert_eq!(typed.iter().filter(|other| *other == name).count(), 1, "{name} twice");
            let is = |arg: &clap::Arg| {
                arg.get_long().is_some_and(|long| *name == format!("--{long}"))
                    || arg.get_short().is_some_and(|short| *name == format!("-{short}"))
            };
            assert!(!generate.get_arguments().any(is), "{name} is a flag of ours");
        }
        for (names, _) in COMMANDS {
            assert!(names.iter().all(|name| root.find_subcommand(name).is_none()), "{names:?}");
        }
    }
}
