//! Flags out of range, commands and outputs that cannot be.

use super::common::*;

/// (arguments after `generate "a red ball"`, words of the error)
const FLAGS: &[(&[&str], &[&str])] = &[
    (&["--size", "0x0"], &["--size", "`0x0`", "1 to"]),
    (&["--size", "-1x5"], &["--size", "`-1x5`", "1 to 16384"]),
    (&["--size", "64"], &["--size", "`64`", "704x480"]),
    (&["--size", "axb"], &["--size", "`axb`", "704x480"]),
    (&["--size", "99999x64"], &["--size", "`99999x64`", "16384"]),
    (&["--size", "99999999999999999999x64"], &["--size", "1 to 16384"]),
    (
        &["--size", "16384x16384", "--frames", "100000", "--memory", "8GiB", "-o", "a.png"],
        &["--memory allows", "fix: --size"],
    ),
    (&["--memory", "3q"], &["--memory", "`3q`", "8GiB"]),
    (&["--memory", "0"], &["--memory", "`0`", "8GiB"]),
    (&["--memory", "8"], &["--memory", "`8`", "unit", "8GiB"]),
    (&["--memory", "-1GB"], &["--memory", "`-1GB`", "8GiB"]),
    (&["--memory", "10MB"], &["encoding the prompt", "--memory allows 10.0 MB", "fix: ", "MiB"]),
    (&["--memory", "100MB", "--size", "1024x1024"], &["of memory", "--memory allows", "--size", "MiB"]),
    (&["--vae-tile", "30x30"], &["--vae-tile 30x30", "multiple of 16", "--vae-tile 32x32"]),
    (&["--vae-tile", "0x16"], &["--vae-tile", "`0x16`", "1 to"]),
    (&["--vae-tile", "all"], &["--vae-tile", "`all`", "none"]),
    (&["--vae-tile", "32x32", "--vae-overlap", "32"], &["--vae-overlap 32", "at most 16", "--vae-overlap 16"]),
    (&["--vae-overlap", "16"], &["--vae-tile"]),
    (&["--json"], &["--dry-run"]),
    (&["--frames", "0"], &["--frames", "`0`", "1 to"]),
    (&["--frames", "-3"], &["--frames", "-3"]),
    (&["--frames", "1e9"], &["--frames", "`1e9`"]),
    (&["--frames", "1000000000"], &["--frames", "`1000000000`", "100000"]),
    (&["--frames", "9", "--seconds", "1"], &["--frames", "--seconds"]),
    (&["--seconds", "nan"], &["--seconds", "`nan`"]),
    (&["--seconds", "-1"], &["--seconds", "`-1`"]),
    (&["--seconds", "1e12"], &["--seconds", "86400"]),
    (&["--seconds", "86400"], &["frames", "--seconds"]),
    (&["--seconds", "soon"], &["--seconds", "`soon`"]),
    (&["--fps", "0"], &["--fps", "`0`"]),
    (&["--fps", "nan"], &["--fps", "`nan`"]),
    (&["--fps", "inf"], &["--fps", "`inf`"]),
    (&["--steps", "0"], &["--steps", "`0`", "1 to"]),
    (&["--steps", "-2"], &["--steps", "-2"]),
    (&["--steps", "4", "--sigmas", "1,0.5"], &["--steps", "--sigmas"]),
    (&["--sigmas", "0.5,0.7"], &["--sigmas 0.5,0.7", "fall", "fix: such as --sigmas 0.7,0.5"]),
    (&["--sigmas", "0.5,0.5"], &["--sigmas 0.5,0.5", "below"]),
    (&["--sigmas", "1,1"], &["--sigmas 1,1", "fix: such as --sigmas 1"]),
    (&["--sigmas", ""], &["--sigmas"]),
    (&["--sigmas", "1.5,0.5"], &["--sigmas", "`1.5`", "0 to 1"]),
    (&["--sigmas", "1,nan"], &["--sigmas", "`nan`"]),
    (&["--sigmas", "1,-0.5"], &["--sigmas", "`-0.5`"]),
    (&["--sigmas", "0"], &["--sigmas 0", "fix: such as --sigmas 0.9,0.6,0.3"]),
    (&["--sigmas", "1,x"], &["--sigmas", "`x`"]),
    (&["--guidance", "nan"], &["--guidance", "`nan`"]),
    (&["--guidance", "-1"], &["--guidance", "`-1`"]),
    (&["--guidance-rescale", "2"], &["--guidance-rescale", "`2`", "0 to 1"]),
    (&["--stg", "-1"], &["--stg", "`-1`", "0 to"]),
    (&["--stg", "1"], &["--stg", "--stg-blocks", "fix:"]),
    (&["--stg", "1", "--stg-blocks", "3,99"], &["--stg-blocks 99", "0 to", "fix:", "such as --stg-blocks"]),
    (&["--stg-blocks", "99"], &["--stg-blocks 99", "0 to", "fix:"]),
    (&["--stg-blocks", "-1"], &["--stg-blocks", "-1"]),
    (&["--cfg-star", "maybe"], &["--cfg-star", "`maybe`", "off"]),
    (&["--stochastic"], &["--stochastic"]),
    (&["--second-sigmas", "1,0.5"], &["--second-sigmas 1,0.5", "below 1", "fix: such as --second-sigmas 0.5"]),
    (&["--second-sigmas", "0.5,0.9"], &["--second-sigmas 0.5,0.9", "fall"]),
    (&["--adain", "2"], &["--adain", "`2`", "0 to 1"]),
    (&["--tone-map", "nan"], &["--tone-map", "`nan`", "0 to 1"]),
    (&["--upscaler", ""], &["upscaler", "fix:"]),
    (&["--upscaler", "nowhere"], &["no upscaler at `nowhere`", "`none`", "fix:"]),
    (&["--upscaler", "plain"], &["`plain`", "safetensors", "fix:"]),
    (&["--decode-timestep", "5"], &["--decode-timestep", "`5`", "0 to 1"]),
    (&["--decode-noise", "-0.1"], &["--decode-noise", "`-0.1`", "0 to 1"]),
    (&["--seed", "abc"], &["--seed", "`abc`"]),
    (&["--seed", "99999999999999999999"], &["--seed", "64 bits"]),
    (&["--scale", "0"], &["--scale", "1 to 16"]),
    (&["--scale", "17"], &["--scale", "1 to 16"]),
    (&["--scale", "-2"], &["--scale", "-2"]),
    (&["--scale", "16", "--size", "2048x64"], &["--scale 16", "32768x1024", "16384", "fix: --scale 8"]),
    (&["--scale", "16", "--size", "1024x1024", "--memory", "1GB", "-o", "a.png"], &["--memory allows", "fix:"]),
    (&["--scale-filter", "sharp"], &["--scale-filter", "`sharp`", "nearest"]),
    (&["--quality", "0"], &["--quality", "1 to 100"]),
    (&["--quality", "101"], &["--quality", "1 to 100"]),
    (&["--quality", "300"], &["--quality", "300"]),
    (&["--threads", "0"], &["--threads", "`0`", "1"]),
    (&["--threads", "-1"], &["--threads", "-1"]),
    (&["--device", "gpu7"], &["`gpu7`", "cuda:N"]),
    (&["--device", "cuda:x"], &["`cuda:x`", "cuda:N"]),
    (&["--dtype", "f64"], &["--dtype", "`f64`", "bf16"]),
    (&["--convention", "both"], &["--convention", "`both`", "condition"]),
    (&["--progress", "loud"], &["--progress", "`loud`", "json"]),
    (&["--window", "0"], &["--window", "`0`", "2 to"]),
    (&["--window", "1"], &["--window", "`1`", "2 to"]),
    (&["--window", "10000000000000000"], &["--window", "100000"]),
    (&["--image-crf", "52"], &["--image-crf", "0 to 51"]),
    (&["--keyframe", "still.png@4:7"], &["--keyframe", "strength 7", "0 to 1"]),
    (&["--keyframe", "still.png@x"], &["--keyframe", "FILE@FRAME"]),
    (&["--prompt-at", "soon", "x"], &["--prompt-at", "`soon`", "fix:"]),
    (&["--colour", "red"], &["--colour", "reel generate --help"]),
    (&["--frame", "9"], &["--frame", "--frames"]),
    (&["--seed"], &["--seed"]),
    (&["--seed", "1", "--seed", "2"], &["--seed", "twice"]),
    (&["and", "more"], &["`and`"]),
    (&["-o", ""], &["output path is empty", "fix:"]),
    (&["-o", "a.mov"], &["`.mov`", ".webp", "fix:"]),
    (&["-o", "no/such/a.gif"], &["`no/such`", "mkdir -p"]),
    (&["-o", "plain/a.gif"], &["`plain`", "is a file", "fix:"]),
    (&["-o", "plain/sub/a.gif"], &["plain", "fix:"]),
    (&["-o", "plain/"], &["plain", "fix:"]),
    (&["-o", "plain"], &["`plain`", "is a file", "fix:"]),
    (&["-o", "old.gif"], &["`old.gif`", "exists", "--force"]),
    (&["-o", "frames/"], &["`frames/`", "00000.png", "--force"]),
    (&["--size", "70000x16", "-o", "a.gif"], &["--size"]),
];

#[test]
fn flags_out_of_range_are_refused() {
    let scratch = Scratch::new();
    scratch.write("plain", "a file");
    scratch.write("old.gif", "an old one");
    scratch.write("frames/00000.png", "an old frame");
    each(FLAGS, |(flags, words)| {
        let mut args = vec!["generate", "a red ball"];
        args.extend(*flags);
        refused(&scratch, &args, words);
    });
}

/// What the user's own `weights.toml` says is held to the same ranges, with file and line.
#[test]
fn entries_out_of_range_are_refused() {
    let scratch = Scratch::new();
    let entry = "[x]\nabout = 'mine'\nlicence = 'none'\nrepo = 'me/mine'\nfile = 'a.safetensors'\n\n[x.run]\n";
    for line in ["width = 9223372036854775807", "height = 4294967296", "fps = inf", "image_crf = 300", "window = 1"] {
        scratch.write("no-home/reel/weights.toml", format!("{entry}{line}\n"));
        let key = line.split(' ').next().unwrap();
        refused(&scratch, &["generate", "x", "--model", "x", "--dry-run"], &["weights.toml`, line 8", key, "fix:"]);
    }
}

#[test]
fn a_bench_out_of_range_is_refused() {
    let scratch = Scratch::new();
    for (flag, value) in [("--size", "0x0"), ("--size", "16385x64"), ("--frames", "0"), ("--frames", "1000000000")] {
        refused(&scratch, &["bench", flag, value], &[flag, value, "1 to"]);
    }
    for part in ["step", "encode", "mux"] {
        let huge = ["bench", "--part", part, "--size", "16384x16384", "--frames", "100000"];
        refused(&scratch, &huge, &["16384x16384", part, "are free", "--frames"]);
    }
    for (flag, value) in [("--threads", "0"), ("--threads", "1000000000"), ("--tokens", "0"), ("--repeat", "0")] {
        refused(&scratch, &["bench", flag, value], &[flag, value, "1 to"]);
    }
}

#[test]
#[cfg(feature = "h264")]
fn mp4_takes_even_sizes_only() {
    let scratch = Scratch::new();
    refused(&scratch, &["generate", "x", "--size", "33x32", "-o", "a.mp4"], &["33x32", "--size 34x32", ".webp"]);
    refused(&scratch, &["generate", "x", "--size", "8x8", "-o", "a.mp4"], &["8x8", "16x16", "fix:"]);
    refused(&scratch, &["generate", "x", "--size", "4000x4000", "-o", "a.mp4"], &["4000x4000", "3840", "fix:"]);
}

#[test]
#[cfg(not(any(feature = "cuda", feature = "metal")))]
fn devices_that_this_build_lacks() {
    let scratch = Scratch::new();
    for device in ["cuda", "cuda:1", "metal"] {
        refused(&scratch, &["generate", "x", "--device", device], &["this build", "--device cpu", "--features"]);
    }
    refused(
        &scratch,
        &["generate", "x", "--gpu"],
        &["`--gpu`", "--device cuda", "`cargo build --release --features cuda`"],
    );
}

#[test]
fn verbs_that_are_none() {
    let scratch = Scratch::new();
    refused(&scratch, &["genrate", "x"], &["`genrate`", "generate"]);
    refused(&scratch, &["--colour"], &["`--colour`", "reel --help"]);
    refused(&scratch, &["generate"], &["PROMPT", "reel generate --help"]);
    refused(&scratch, &["completions", "tcsh"], &["`tcsh`", "bash"]);
    refused(&scratch, &["completions"], &["SHELL"]);
    refused(&scratch, &["models", "fetch", "t5"], &["`fetch`", "reel models pull t5"]);
    refused(&scratch, &["models", "pack"], &["DIR"]);
    refused(&scratch, &["models", "pack", "no-such", "-o", "a.safetensors"], &["no-such", "fix:"]);
    // nothing asked for: what there is, where errors go
    for args in [&[][..], &["models"]] {
        let output = reel(&scratch.0, args);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty() && text(&output.stderr).contains("Usage: reel"));
    }
}

#[test]
fn a_prompt_that_is_no_text() {
    use std::io::Write;
    let scratch = Scratch::new();
    let args = ["generate", "-"];
    let mut command = command(&scratch.0, &args);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a \xff\xfe ball").unwrap();
    let output = child.wait_with_output().unwrap();
    judge(&args, &output, 2, &["standard input"]);
    assert!(scratch.listing().is_empty());
}

/// Where the machine is at fault the exit code is 1. A folder of frames is looked at before the work; the disk that fills up
/// cannot be had in a test, a standard output that is closed can.
#[test]
#[cfg(target_os = "linux")]
fn a_failing_standard_output_is_the_machines_fault() {
    let scratch = Scratch::new();
    let args = short(&["-o", "-"]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&scratch.0, &args).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
    judge(&args, &output, 1, &["standard output"]);
    for args in [&["--help"][..], &["--version"], &["generate", "--help"], &["models", "path", "--help"], &["licenses"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(&scratch.0, args).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
        judge(args, &output, 1, &["standard output"]);
    }
}
