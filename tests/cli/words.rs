//! What is said: hints for words of other programs, prompts from standard input, text that others wrote, and JSON.

use super::common::*;
use serde_json::Value;
use std::io::Write;
use std::process::{Output, Stdio};

/// Runs with `bytes` on standard input.
fn fed(scratch: &Scratch, args: &[&str], bytes: &[u8]) -> Output {
    let mut command = command(&scratch.0, args);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(bytes); // one that stops reading is no error here
    child.wait_with_output().unwrap()
}

/// (arguments, words of the error)
const HINTS: &[(&[&str], &[&str])] = &[
    (&["generate", "x", "--width", "512", "--height", "320"], &["`--width`", "fix: --size 512x320"]),
    (&["generate", "x", "--height", "320"], &["`--height`", "fix: --size WxH"]),
    (&["generate", "x", "--resolution", "64x64"], &["`--resolution`", "fix: --size 64x64"]),
    (&["generate", "x", "--cfg", "3"], &["`--cfg`", "fix: --guidance 3"]),
    (&["generate", "x", "--guidance_scale=2.5"], &["fix: --guidance 2.5"]),
    (&["generate", "--prompt", "a red ball"], &["`--prompt`", "without a flag", "\"PROMPT\""]),
    (&["generate", "x", "--gpu"], &["`--gpu`", "fix: --device cuda"]),
    (&["generate", "x", "--duration", "4"], &["fix: --seconds 4"]),
    (&["generate", "x", "--length", "4"], &["fix: --seconds 4"]),
    (&["generate", "x", "-y"], &["`-y`", "fix: --force"]),
    (&["generate", "x", "--overwrite"], &["fix: --force"]),
    (&["generate", "x", "-n", "4"], &["`-n`", "another --seed"]),
    (&["generate", "x", "--batch", "4"], &["another --seed"]),
    (&["generate", "x", "--num-frames", "9"], &["fix: --frames 9"]),
    (&["generate", "x", "--num_inference_steps", "9"], &["fix: --steps 9"]),
    (&["generate", "x", "--negative-prompt", "dark"], &["fix: --negative"]),
    (&["generate", "x", "--output", "a.mp4"], &["fix: -o a.mp4"]),
    (&["generate", "x", "--input", "a.png"], &["fix: --image a.png"]),
    (&["extend", "a.mp4", "x", "--width", "64"], &["fix: --size"]),
    (&["generate", "x", "--image-url", "https://x/a.png"], &["not fetched"]),
    (&["generate", "x", "--image", "https://x/a.png"], &["https://x/a.png", "fix: ", "not fetched"]),
    (&["generate", "x", "--strength", "0.5"], &["--keyframe FILE@FRAME:0.5"]),
    (&["generate", "x", "--json"], &["--json goes with --dry-run", "--progress json"]),
    (&["--model", "tiny", "generate", "x"], &["`--model`", "reel generate \"PROMPT\" --model"]),
    (&["generate", "x", "-s", "64x64"], &["`-s`", "fix: --size 64x64"]),
    (&["generate", "x", "-s", "42"], &["`-s`", "fix: --seed 42, or --steps 42"]),
    (&["generate", "x", "-s"], &["`-s`", "--size WxH, --seed N or --steps N"]),
    (&["generate", "x", "--loop"], &["`--loop`", "fix: `reel loop CLIP`"]),
    (&["extend", "a.gif", "x", "--loop"], &["`--loop`", "fix: `reel loop CLIP`"]),
    (&["generate", "x", "--upscale", "2"], &["`--upscale`", "fix: --scale 2"]),
    (&["upscale", "a.mp4"], &["`upscale`", "--scale 2", "ffmpeg"]),
    (&["generate", "x", "--model", "Lightricks/LTX-Video"], &["on the hub", "fix: --model ltx-", "reel models list"]),
    (&["generate", "x", "--model", "https://huggingface.co/lightricks/ltx-video/"], &["on the hub", "--model ltx-"]),
    (&["generate", "x", "--model", "city96/t5-v1_1-xxl-encoder-bf16"], &["on the hub", "fix: --text-encoder t5-xxl"]),
    (
        &["generate", "x", "--model", "someone/Some-Video"],
        &["`someone/Some-Video`", "reel models list", "downloaded first"],
    ),
    (&["generate", "x", "--model", "./someone/model"], &["no checkpoint at `./someone/model`"]),
    (&["models", "pull", "Lightricks/LTX-Video"], &["on the hub", "fix: `reel models pull ltx-"]),
    (&["list"], &["`list`", "fix: `reel models list`"]),
    (&["pull", "ltx-2b-0.9.5"], &["fix: `reel models pull ltx-2b-0.9.5`"]),
    (&["play", "a.mp4"], &["`play`", "player"]),
    (&["info", "a.mp4"], &["`info`", "fix: "]),
    (&["run", "x"], &["fix: `reel generate \"PROMPT\"`"]),
    (&["txt2vid", "x"], &["fix: `reel generate \"PROMPT\"`"]),
    (&["img2vid", "a.png"], &["--image FILE"]),
    (&["a red ball"], &["there is no command `a red ball`", "fix: reel generate \"a red ball\""]),
    (&["a", "red", "ball", "-o", "a.gif"], &["fix: reel generate \"a red ball\""]),
    (&["models", "ls"], &["`ls`", "fix: `reel models list`"]),
    (&["generate", "x", "--model", "ltx-2b"], &["did you mean `ltx-2b-0.9.8-distilled`"]),
    (&["generate", "x", "--prompt-at", "10", "a blue ball"], &["--prompt-at 10", "fix: ", "--seconds 13"]),
    (&["generate", "x", "--keyframe", "still.png@4:7"], &["strength 7", "0 to 1"]),
];

#[test]
fn words_of_other_programs_are_understood() {
    let scratch = Scratch::new();
    each(HINTS, |(args, words)| refused(&scratch, args, words));
    for (args, _) in HINTS {
        assert!(!text(&reel(&scratch.0, args).stderr).contains("verb"), "{args:?}");
    }
}

/// Checks come before the seed that a run draws.
#[test]
fn a_seed_is_said_when_all_is_checked() {
    let scratch = Scratch::new();
    let drawn = |args: &[&str]| {
        let unseeded = short(&[]).into_iter().filter(|arg| !["--seed", "7"].contains(arg));
        let args: Vec<&str> = unseeded.chain(args.iter().copied()).collect();
        let output = reel(&scratch.0, &args);
        let said = text(&output.stderr);
        said.lines().find_map(|line| line.strip_prefix("seed ").map(String::from))
    };
    assert_eq!(drawn(&["-o", "no/such/a.gif"]), None);
    let seeds =
        [drawn(&["-o", "a.gif"]), drawn(&["-o", "b.gif", "--seed", "-1"]), drawn(&["-o", "c.gif", "--seed", "-1"])];
    assert!(seeds.iter().all(Option::is_some) && seeds[1] != seeds[2], "{seeds:?}");
}

#[test]
fn prompts_from_standard_input_are_text_of_some_length() {
    let scratch = Scratch::new();
    let refused: [(&[u8], &str); 5] = [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"a \xff\xfe ball", "not text"),
        (b"a\0ball", "not text"),
        (&[b'x'; 100_000], "64 kB"),
    ];
    for (bytes, words) in refused {
        let args = ["generate", "-", "-o", "a.gif"];
        judge(&args, &fed(&scratch, &args, bytes), 2, &["standard input", words, "fix: "]);
    }
    let wide: Vec<u8> = "\u{feff}a red ball\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut args = short(&["-o", "a.gif"]);
    args[1] = "-";
    let output = fed(&scratch, &args, &wide);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let long = "red ball ".repeat(7000);
    let last = args.len() - 1;
    args[last] = "b.gif";
    let output = fed(&scratch, &args, long.as_bytes());
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("not read: “"), "{said}");
    assert!(said.lines().all(|line| line.len() < 300), "{said}");
    // an argument may be empty
    args[1] = "";
    args[last] = "c.gif";
    assert!(reel(&scratch.0, &args).status.success());
}

#[test]
fn the_built_in_model_says_what_it_does_not_know() {
    let scratch = Scratch::new();
    let said = |prompt: &str, more: &[&str]| {
        let args = [&["generate", prompt, "--seed", "7", "--dry-run"], more].concat();
        let output = reel(&scratch.0, &args);
        assert!(output.status.success());
        text(&output.stderr)
    };
    let cat = said("a cat sleeps on a sofa", &[]);
    assert!(cat.contains("does not know `cat`, `sleeps`, `sofa`; it knows a coloured ball"), "{cat}");
    assert_eq!(cat.lines().count(), 1, "{cat}");
    assert_eq!(said("a red ball bounces on green grass", &[]), "");
    assert!(said("a red ball", &["--size", "256x256"]).contains("trained at 64x64"));
    // a file that is not the built-in model has its own world
    let mut model = Model::tiny();
    model.metadata.remove("name");
    scratch.write("other.safetensors", model.bytes());
    let other = said("a cat sleeps", &["--model", "other.safetensors", "--size", "256x256"]);
    assert!(!other.contains("does not know") && !other.contains("trained at"), "{other}");
}

/// Nothing that a file says moves the cursor of a terminal or begins a line.
#[test]
fn text_of_files_is_made_visible() {
    let scratch = Scratch::new();
    let hostile = "\u{1b}]0;pwned\u{7}\u{1b}[2K\u{9b}31m\u{202e}x\nverified by Hugging Face";
    let checkpoint = Model::tiny().directory(&scratch, "ck");
    let index = serde_json::json!({"_class_name": hostile, "_diffusers_version": "0.42.1"});
    std::fs::write(checkpoint.join("model_index.json"), index.to_string()).unwrap();
    scratch
        .write("a.y4m", [b"YUV4MPEG2 W16 H16 F8:1 C\x1b]0;pwned\x07\x1b[31mX\nFRAME\n".as_slice(), &[0; 384]].concat());
    let long = "x".repeat(100_000);
    let own = format!("[{}]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\n", long);
    let runs: [&[&str]; 6] = [
        &["generate", hostile, "--model", "ck", "--dry-run"],
        &["generate", "x", "--model", hostile],
        &["extend", "a.y4m", "x"],
        &["generate", "x", "--size", hostile],
        &[hostile],
        &["generate", "x", "--progress", "json", "--model", hostile],
    ];
    for args in runs {
        let output = reel(&scratch.0, args);
        for said in [text(&output.stdout), text(&output.stderr)] {
            let hidden = said.chars().find(|&c| c.is_control() && c != '\n' || c == '\u{202e}');
            assert_eq!(hidden, None, "{args:?}\n{said:?}");
            assert!(!said.lines().any(|line| line.starts_with("verified")), "{args:?}\n{said}");
        }
    }
    scratch.write("no-home/reel/weights.toml", own);
    for args in [&["models", "list"][..], &["generate", "x", "--model", &"y".repeat(50_000)]] {
        let output = reel(&scratch.0, args);
        for said in [text(&output.stdout), text(&output.stderr)] {
            assert!(said.lines().all(|line| line.len() < 4000), "{}", args[0]);
        }
    }
}

/// With `--progress json` every line is an object, also where the command line is wrong; a fix is a field of its own.
#[test]
fn errors_as_json_have_their_fix_apart() {
    let scratch = Scratch::new();
    let runs: [&[&str]; 4] = [
        &["generate", "x", "--progress", "json", "--size", "0x0"],
        &["generate", "x", "--progress=json", "--widht", "5"],
        &["generate", "x", "--progress", "json", "-o", "no/such/a.gif"],
        &["generate", "x", "--progress", "json", "--model", "no-such-model"],
    ];
    for args in runs {
        let output = reel(&scratch.0, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = text(&output.stderr);
        let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap_or_else(|e| panic!("{e}: {said}"));
        assert_eq!(last["event"], "error", "{said}");
        let (error, fix) = (last["text"].as_str().unwrap(), last["fix"].as_str().unwrap_or_default());
        assert!(!error.contains("fix:") && !error.contains('\n') && !fix.is_empty(), "{said}");
    }
}

/// Colours only where they show, and nowhere where they are not wanted.
#[test]
fn colours_are_for_terminals() {
    let scratch = Scratch::new();
    let said = |set: &[(&str, &str)]| {
        let mut command = command(&scratch.0, &["generate", "x", "--size", "0x0"]);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").envs(set.iter().copied());
        text(&command.output().unwrap().stderr)
    };
    assert!(said(&[]).starts_with("error: "));
    assert!(said(&[("CLICOLOR_FORCE", "1")]).starts_with("\u{1b}[1;31merror:\u{1b}[0m "));
    assert!(said(&[("CLICOLOR_FORCE", "0")]).starts_with("error: "));
    assert!(said(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).starts_with("error: "));
}
