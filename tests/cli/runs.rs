//! Runs that work: what comes where, in what form, and what an interrupt leaves.

use super::common::*;
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

fn works(scratch: &Scratch, args: &[&str]) -> (Vec<u8>, String) {
    let output = reel(&scratch.0, args);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{args:?}\n{said}");
    (output.stdout, said)
}

#[test]
fn help_and_data_go_to_standard_output() {
    let scratch = Scratch::new();
    let commands: [&[&str]; 13] = [
        &["--help"],
        &["generate", "--help"],
        &["models", "--help"],
        &["models", "list", "--help"],
        &["models", "pull", "--help"],
        &["models", "verify", "--help"],
        &["models", "path", "--help"],
        &["models", "remove", "--help"],
        &["models", "pack", "--help"],
        &["bench", "--help"],
        &["selftest", "--help"],
        &["completions", "--help"],
        &["licenses", "--help"],
    ];
    for args in commands {
        let (out, said) = works(&scratch, args);
        assert!(text(&out).contains("Usage: reel") && said.is_empty(), "{args:?}");
    }
    let version = text(&works(&scratch, &["--version"]).0);
    assert!(version.starts_with("reel 0.") && version.contains("features: ") && version.contains("CPU: "), "{version}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = text(&works(&scratch, &["completions", shell]).0);
        assert!(script.contains("generate") && script.contains("text-encoder"), "{shell}");
    }
    let notices = text(&works(&scratch, &["licenses"]).0);
    assert!(notices.contains("candle") && notices.contains("Apache"));
    let list = text(&works(&scratch, &["models", "list"]).0);
    assert!(list.starts_with("model ") && list.contains("ltx-2b-0.9.0") && list.contains("licence"), "{list}");
    let rows: Value = serde_json::from_slice(&works(&scratch, &["models", "list", "--json"]).0).unwrap();
    assert_eq!(rows[0]["name"], "tiny");
    assert!(scratch.listing().is_empty());
}

/// Lines that are said, but for the one about the small size of short runs.
fn lines_of(said: &str) -> usize {
    said.lines().filter(|line| !line.contains("smaller sizes")).count()
}

/// Each form by its first bytes, and its number of frames where they are easily counted.
#[test]
fn every_form_is_written() {
    let scratch = Scratch::new();
    let file = |name: &str| {
        let (out, said) = works(&scratch, &short(&["-o", name]));
        assert!(out.is_empty() && said.contains(name) && lines_of(&said) == 1, "{said}");
        std::fs::read(scratch.path(name)).unwrap()
    };
    if cfg!(feature = "h264") {
        assert_eq!(&file("a.mp4")[4..8], b"ftyp");
    }
    assert_eq!(&file("a.gif")[..6], b"GIF89a");
    let webp = file("a.webp");
    assert_eq!((&webp[..4], &webp[8..12]), (&b"RIFF"[..], &b"WEBP"[..]));
    let png = file("a.png");
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let control = png.windows(4).position(|w| w == b"acTL").expect("an animated PNG");
    assert_eq!(png[control + 4..control + 8], 5u32.to_be_bytes());

    works(&scratch, &short(&["-o", "frames/"]));
    let names: Vec<_> = scratch.listing().into_iter().map(|(path, _)| path).collect();
    let frames = (0..5).map(|i| scratch.path(&format!("frames/{i:05}.png")));
    assert!(frames.clone().all(|frame| names.contains(&frame)));
    assert_eq!(std::fs::read_dir(scratch.path("frames")).unwrap().count(), 5);

    let (y4m, said) = works(&scratch, &short(&["-o", "-"]));
    assert!(y4m.starts_with(b"YUV4MPEG2 W32 H32 F8:1"), "{}", String::from_utf8_lossy(&y4m[..60]));
    assert_eq!(y4m.windows(5).filter(|w| w == b"FRAME").count(), 5);
    assert!(!said.is_empty());
}

#[test]
fn without_o_the_name_comes_from_prompt_and_seed() {
    let scratch = Scratch::new();
    let name = if cfg!(feature = "h264") { "a-red-ball-7.mp4" } else { "a-red-ball-7.webp" };
    works(&scratch, &short(&[]));
    assert_eq!(scratch.listing().into_iter().map(|(path, _)| path).collect::<Vec<_>>(), [scratch.path(name)]);
    refused(&scratch, &short(&[]), &[name, "--force"]);
    works(&scratch, &short(&["--force"]));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_force_replaces() {
    let scratch = Scratch::new();
    scratch.write("a.gif", "an old one");
    works(&scratch, &short(&["-o", "a.gif", "--force"]));
    works(&scratch, &short(&["-o", "b.gif", "--threads", "1"]));
    let (a, b) = (std::fs::read(scratch.path("a.gif")).unwrap(), std::fs::read(scratch.path("b.gif")).unwrap());
    assert!(a.starts_with(b"GIF89a") && a == b);
    // frames: those of an old clip go, what is not a frame stays, and so does a number after a gap
    let old = (0..7).map(|i| format!("f/{i:05}.png")).chain(["f/00009.png", "f/notes.txt"].map(String::from));
    old.for_each(|name| drop(scratch.write(&name, "old")));
    works(&scratch, &short(&["-o", "f/", "--force"]));
    assert!(!scratch.path("f/00006.png").exists());
    assert!(scratch.path("f/00009.png").exists() && scratch.path("f/notes.txt").exists());
    assert!(std::fs::read(scratch.path("f/00000.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn prompts_of_all_kinds() {
    let scratch = Scratch::new();
    let from_stdin = |prompt: &str, name: &str| {
        let mut args = short(&["-o", name]);
        args[1] = "-";
        let mut child = command(&scratch.0, &args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(prompt.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        std::fs::read(scratch.path(name)).unwrap()
    };
    works(&scratch, &short(&["-o", "a.gif"]));
    assert_eq!(from_stdin("a red ball\n", "b.gif"), std::fs::read(scratch.path("a.gif")).unwrap());
    assert_ne!(from_stdin("a red star", "c.gif"), from_stdin("a blue star at night", "d.gif"));

    let mut args = short(&["-o", "e.gif"]);
    args[1] = "";
    let (_, said) = works(&scratch, &args);
    assert_eq!(lines_of(&said), 1, "{said}");

    let long = format!("{}at night", "a red ball bounces, ".repeat(100));
    let mut args = short(&["-o", "f.gif"]);
    args[1] = &long;
    let (_, said) = works(&scratch, &args);
    let unread: Vec<&str> = said.lines().filter(|line| line.contains("not read")).collect();
    // its first words
    assert!(unread.len() == 1 && unread[0].contains("256 tokens") && unread[0].ends_with(" …”"), "{said}");
    // lines in a prompt stay one line in a remark
    let long = long.replace(", ", "\n");
    args = short(&["-o", "g.gif"]);
    args[1] = &long;
    assert_eq!(lines_of(&works(&scratch, &args).1), 2);
}

#[test]
fn quiet_is_quiet_and_json_is_json() {
    let scratch = Scratch::new();
    assert_eq!(works(&scratch, &short(&["-q", "-o", "a.gif"])).1, "");
    assert_eq!(works(&scratch, &short(&["-q", "--progress", "json", "-o", "b.gif"])).1, "");
    assert_eq!(works(&scratch, &short(&["--progress", "none", "-o", "c.gif"])).1, "");

    let (out, said) = works(
        &scratch,
        &[
            "generate",
            "x",
            "--seed",
            "7",
            "--sigmas",
            "1",
            "--guidance",
            "1",
            "--size",
            "33x32",
            "--frames",
            "5",
            "--progress",
            "json",
            "-o",
            "-",
        ],
    );
    assert!(out.starts_with(b"YUV4MPEG2 W33 H32"));
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    assert_eq!(of("progress").len() + of("note").len() + of("done").len(), events.len());
    assert!(of("note").iter().any(|e| e["text"].as_str().unwrap().contains("cropped")), "{said}");
    for stage in ["text", "denoise", "decode"] {
        let last = of("progress").into_iter().rfind(|e| e["stage"] == stage).expect(stage);
        assert_eq!(last["done"], last["total"], "{last}");
    }
    let done = of("done");
    assert_eq!(events.last(), done.last().copied());
    assert_eq!((&done[0]["frames"], &done[0]["seed"], &done[0]["width"]), (&5.into(), &7.into(), &33.into()));

    // an error is an object there too
    let output = reel(&scratch.0, &short(&["--progress", "json", "--device", "gpu7"]));
    assert_eq!(output.status.code(), Some(2));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["event"], "error");
    assert!(error["text"].as_str().unwrap().contains("gpu7"));
}

#[test]
fn a_flag_without_effect_gets_one_line() {
    let scratch = Scratch::new();
    for (flags, name) in [
        (&["--negative", "rain"][..], "--negative"),
        (&["--guidance-rescale", "0.5"], "--guidance-rescale"),
        (&["--decode-timestep", "0.1"], "--decode-timestep"),
        (&["--decode-noise", "0.1"], "--decode-noise"),
        (&["--image-noise", "0.1"], "--image-noise"),
        (&["--quality", "50"], "--quality"),
    ] {
        let mut args = short(&["-o", "a.gif", "--force"]);
        args.extend(flags);
        let (_, said) = works(&scratch, &args);
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("has no effect")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(name), "{flags:?}\n{said}");
        assert_eq!(lines_of(&said), 2, "{said}"); // that line and the last one
    }
}

/// The model makes the same clip; what is written is larger, in all that is said of it too.
#[test]
fn the_output_is_enlarged() {
    let scratch = Scratch::new();
    let pictures = |more: &[&str]| {
        let (_, said) = works(&scratch, &short(&[&["-o", "f/", "--force"], more].concat()));
        (image::open(scratch.path("f/00004.png")).unwrap().into_rgb8(), said)
    };
    let (small, _) = pictures(&[]);
    let (large, said) = pictures(&["--scale", "4", "--scale-filter", "nearest"]);
    assert!(said.contains("128x128"), "{said}");
    assert_eq!(large, image::imageops::resize(&small, 128, 128, image::imageops::FilterType::Nearest));
    let (smooth, _) = pictures(&["--scale", "4"]);
    assert_eq!(smooth.dimensions(), (128, 128));
    assert_ne!(smooth, large);
    let (_, said) = works(&scratch, &short(&["-o", "a.gif", "--scale-filter", "nearest"]));
    assert!(said.contains("--scale-filter has no effect"), "{said}");
    let (_, said) = works(&scratch, &short(&["-o", "b.gif", "--scale", "3", "--progress", "json"]));
    let done: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&done["width"], &done["height"]), (&96.into(), &96.into()));
    assert_eq!(&std::fs::read(scratch.path("b.gif")).unwrap()[6..10], [96, 0, 96, 0]);
    let (table, _) = works(&scratch, &short(&["--scale", "4", "--dry-run"]));
    assert!(text(&table).contains("enlarged 4 times on output, to 128x128"), "{}", text(&table));
}

#[test]
fn the_model_comes_from_the_environment_too() {
    let scratch = Scratch::new();
    let output = command(&scratch.0, &short(&["-o", "a.gif"])).env("REEL_MODEL", "no-such-model").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no-such-model"));
    let mut flag = command(&scratch.0, &short(&["-o", "a.gif", "--model", "tiny"]));
    assert!(flag.env("REEL_MODEL", "no-such-model").output().unwrap().status.success());
    // set and empty is not set
    assert!(command(&scratch.0, &short(&["-o", "b.gif"])).env("REEL_MODEL", "").output().unwrap().status.success());
}

/// The same file by path gives the same clip as the embedded one.
#[test]
fn the_embedded_models_by_path() {
    for model in &reel::embedded::MODELS {
        let scratch = Scratch::new();
        scratch.write("m.safetensors", model.file);
        works(&scratch, &short(&["-o", "a.gif", "--model", model.name]));
        let (_, said) = works(&scratch, &short(&["-o", "b.gif", "--model", "m.safetensors"]));
        assert_eq!(lines_of(&said), 1, "{said}");
        assert_eq!(std::fs::read(scratch.path("a.gif")).unwrap(), std::fs::read(scratch.path("b.gif")).unwrap());
    }
}

/// The second built-in model makes a clip of its own size, and says which words of the prompt it does not know.
#[test]
fn the_second_embedded_model_has_its_own_size_and_words() {
    let scratch = Scratch::new();
    let prompt = "a white rocket and a cat in the snow";
    let args = ["generate", prompt, "--model", "tiny-128", "--steps", "1", "--guidance", "1", "--frames", "9"];
    let (_, said) = works(&scratch, &[&args[..], &["-o", "a.gif"]].concat());
    assert!(said.contains("the built-in model `tiny-128` does not know `cat`; it knows one or two"), "{said}");
    assert_eq!(&std::fs::read(scratch.path("a.gif")).unwrap()[6..10], [128, 0, 128, 0]);
    let (list, _) = works(&scratch, &["models", "list"]);
    let list = text(&list);
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"tiny") && names.contains(&"tiny-128"), "{list}");
}

#[test]
#[cfg(unix)]
fn an_interrupt_leaves_nothing_half_written() {
    use std::io::{BufRead, BufReader};
    let denoise = ["generate", "x", "--frames", "800", "--steps", "200", "-o", "a.gif", "--progress", "json"];
    let decode = ["generate", "x", "--frames", "800", "--sigmas", "1", "--guidance", "1", "-o", "a.gif"];
    let decode = [&decode[..], &["--progress", "json"]].concat();
    let mut folder = decode.clone();
    let out = folder.iter().position(|arg| *arg == "a.gif").unwrap();
    folder[out] = "frames/";
    for (args, stage, signal) in
        [(&denoise[..], "denoise", "-INT"), (&decode[..], "decode", "-TERM"), (&folder[..], "decode", "-INT")]
    {
        let scratch = Scratch::new();
        let mut child = command(&scratch.0, args).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let begun = lines.find(|line| {
            let event: Value = serde_json::from_str(line.as_ref().unwrap()).unwrap();
            event["stage"] == stage && (stage == "denoise" || event["done"].as_u64() > Some(0))
        });
        assert!(begun.is_some(), "{stage} never began");
        // the half-written file, or folder with what is in it
        assert!(if stage == "decode" { !scratch.listing().is_empty() } else { scratch.listing().is_empty() });
        assert!(!scratch.path("frames").exists());
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(scratch.listing().is_empty(), "{:?}", scratch.listing());
    }
}

/// Rows come as a table, as JSON and as CSV; a grid has a row for every combination.
#[test]
fn stages_are_timed() {
    let scratch = Scratch::new();
    let quick = ["bench", "--model", "tiny", "--size", "32x32", "--frames", "5", "--warmup", "0", "--repeat", "1"];
    let run = |flags: &[&str]| text(&works(&scratch, &[&quick[..], flags].concat()).0);
    let row: Value =
        serde_json::from_str(&run(&["--part", "step", "--dtype", "bf16", "--threads", "2", "--json"])).unwrap();
    assert_eq!((&row["part"], &row["dtype"]), (&"step".into(), &"bf16".into()), "{row}");
    assert_eq!((&row["threads"], &row["frames"], &row["tokens"]), (&2.into(), &5.into(), &8.into()), "{row}");
    for figure in ["seconds", "gflops", "peak_gflops", "share"] {
        assert!(row[figure].as_f64().is_some_and(|n| n > 0.0), "{figure}: {row}");
    }
    assert!(cfg!(not(target_os = "linux")) || row["peak_memory"].as_u64().is_some_and(|n| n > 1 << 20), "{row}");
    let csv = run(&["--part", "text,decode", "--threads", "1,2", "--csv"]);
    assert!(csv.starts_with("part,weights,") && csv.lines().count() == 5, "{csv}");
    let table = run(&["--part", "encode,run"]);
    assert!(table.contains("GFLOP/s") && table.contains("of peak") && table.contains("\nrun "), "{table}");
    assert!(scratch.listing().is_empty());
}

#[test]
fn what_cannot_be_timed_is_said() {
    let scratch = Scratch::new();
    for (flags, said) in [
        (&["--random-weights", "3b"][..], "choices: 2b, 13b, vae-0.9.0, vae-0.9.1"),
        (&["--random-weights", "2b", "--part", "decode"], "choices: step"),
        (&["--random-weights", "2b", "--model", "tiny"], "leave one out"),
        (&["--random-weights", "vae-0.9.1", "--layers", "2"], "no layers to leave out"),
        (&["--layers", "2"], "--random-weights"),
        (&["--model", "nowhere"], "nowhere"),
        (&["--part", "everything"], "everything"),
    ] {
        let output = reel(&scratch.0, &[&["bench"], flags].concat());
        let text = text(&output.stderr);
        assert!(
            output.status.code() == Some(2) && text.contains(said) && output.stdout.is_empty(),
            "{flags:?}: {text}"
        );
    }
}

/// A plan is data: it is printed, nothing is written, and nothing is made.
#[test]
fn a_dry_run_says_what_a_run_will_take() {
    let scratch = Scratch::new();
    let (out, said) = works(&scratch, &["generate", "a red ball", "--seed", "3", "--dry-run", "--size", "60x50"]);
    let table = text(&out);
    for word in
        ["tiny: 60x50, 17 frames", "made as 64x64", "denoise", "at most", "free", "a-red-ball-3", "download  nothing"]
    {
        assert!(table.contains(word), "{word}\n{table}");
    }
    assert!(said.lines().all(|line| !line.starts_with("error")), "{said}");

    // one that is not here, by what the catalogue knows
    let absent = ["generate", "a boat", "--model", "ltx-13b-0.9.8-dev", "--dry-run", "--memory", "8GiB"];
    let plan: Value = serde_json::from_slice(&works(&scratch, &[&absent[..], &["--json"]].concat()).0).unwrap();
    assert_eq!((&plan["fits"], &plan["blocks"], &plan["passes"]), (&true.into(), &48.into(), &2.into()), "{plan}");
    // 30 steps, of which the first leaves out 3 and the second 17. By the noise level, its first pass evaluates the prompt, the
    // negative prompt at 11 steps, and the prompt with attention weakened at 24; its second one the first and the last of these
    let of = |pass: usize, key: &str| plan["per_pass"][pass][key].as_u64().unwrap();
    assert_eq!([of(0, "windows"), of(0, "steps"), of(0, "evaluations")], [1, 27, 27 + 11 + 24], "{plan}");
    assert_eq!([of(1, "windows"), of(1, "steps"), of(1, "evaluations")], [1, 13, 2 * 13], "{plan}");
    assert_eq!((&plan["windows"], &plan["steps"], &plan["evaluations"]), (&1.into(), &40.into(), &88.into()), "{plan}");
    assert_eq!([of(0, "width"), of(1, "width"), of(1, "tokens")], [800, 1600, 16 * 50 * 28], "{plan}");
    assert!(plan["memory"].as_u64().unwrap() <= 8 << 30 && plan["resident_blocks"].as_u64().unwrap() < 48, "{plan}");
    let bytes: u64 = plan["downloads"].as_array().unwrap().iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    assert!(bytes > 30_000_000_000, "{plan}");
    let table = text(&works(&scratch, &absent).0);
    assert!(table.contains("48 blocks stay in memory") && table.contains("t5-xxl-fp16"), "{table}");
    assert!(table.contains("in two passes: 800x448, then 1600x896") && table.contains("spatial-upscaler"), "{table}");

    // a text encoder that fits, which nothing named
    assert!(table.contains("encoder   `t5-xxl-fp16` (the model's own)"), "{table}");
    let little = ["generate", "a boat", "--model", "ltx-13b-0.9.8-dev", "--dry-run", "--memory", "400MB"];
    // that does not fit either, but its encoder does
    let table = text(&reel(&scratch.0, &little).stdout);
    let why = "encoder   `t5-xxl-q8_0` (encoding the prompt with `t5-xxl-fp16` takes ";
    assert!(table.contains(why) && table.contains("t5-xxl-q8_0: "), "{table}");
    let named = text(&reel(&scratch.0, &[&little[..], &["--text-encoder", "t5-xxl-q6_k"]].concat()).stdout);
    assert!(named.contains("encoder   `t5-xxl-q6_k` (as asked for)"), "{named}");

    // what does not fit is said, with what would
    for format in [&[][..], &["--json"]] {
        let output = reel(&scratch.0, &[&["generate", "a boat", "--dry-run", "--memory", "10MB"], format].concat());
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--memory allows 10.0 MB") && said.contains("fix: --memory"), "{said}");
        assert!(out.contains(if format.is_empty() { "it does not fit" } else { "\"fits\":false" }), "{out}");
    }
    // memory that no machine has is no way out
    let vast = ["--size", "16384x16384", "--frames", "100000", "--memory", "8GiB", "-o", "a.png"];
    let vast = [&["generate", "a boat", "--dry-run"][..], &vast].concat();
    let said = text(&reel(&scratch.0, &vast).stderr);
    assert!(said.contains("fix: --size") && !said.contains("with which all stages fit"), "{said}");
    // one figure is enough for all stages, and less than it is not
    for size in ["64x64", "512x320"] {
        let run =
            |memory: &str| reel(&scratch.0, &["generate", "a boat", "--dry-run", "--size", size, "--memory", memory]);
        let said = text(&run("10MB").stderr);
        let least = said.split("--memory ").last().and_then(|rest| rest.split("MiB").next()).unwrap();
        let output = run(&format!("{least}MiB"));
        assert!(output.status.success(), "{size}: {least}MiB\n{}", text(&output.stderr));
        let less = least.parse::<u64>().unwrap() - 1;
        assert_eq!(run(&format!("{less}MiB")).status.code(), Some(2), "{size}: {less}MiB");
    }
    assert!(scratch.listing().is_empty());
}

/// For a model that is not here, too: a clip has all its frames, not one.
#[test]
fn a_dry_run_counts_the_frames_that_are_held() {
    let scratch = Scratch::new();
    works(&scratch, &["generate", "a red ball", "--frames", "17", "-o", "clip.gif"]);
    works(&scratch, &["generate", "a red ball", "--frames", "1", "-o", "still.png"]);
    let encode = |file: &str| {
        let model = ["generate", "a boat", "--model", "ltx-2b-0.9.8-distilled", "--upscaler", "none"];
        let size = ["--size", "512x320", "--frames", "33", "--memory", "16GiB", "--dry-run", "--json"];
        let held = format!("{file}@8");
        let plan = works(&scratch, &[&model[..], &size, &["--keyframe", &held]].concat()).0;
        let plan: Value = serde_json::from_slice(&plan).unwrap();
        let stage = plan["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "encode").cloned();
        stage.unwrap()["operations"].as_u64().unwrap()
    };
    assert!(encode("clip.gif") > 4 * encode("still.png"));
}

/// Nothing of it has to be here: the footage's headers and the catalogue are enough, for a join as for a clip.
#[test]
fn a_dry_run_with_an_absent_model_goes_by_what_is_given() {
    let scratch = Scratch::new();
    works(&scratch, &["generate", "a red ball", "--frames", "17", "-o", "clip.gif"]);
    works(&scratch, &["generate", "a red ball", "--size", "32x64", "--frames", "1", "-o", "tall.png"]);
    let plan = |args: &[&str]| -> Value {
        let flags = ["--model", "ltx-2b-0.9.5", "--memory", "64GiB", "--dry-run", "--json"];
        serde_json::from_slice(&works(&scratch, &[args, &flags].concat()).0).unwrap()
    };
    let side = |plan: &Value, side: &str| plan["asked"][side].as_u64().unwrap();
    let still = plan(&["generate", "a boat", "--image", "tall.png"]);
    let (width, height) = (side(&still, "width"), side(&still, "height"));
    assert!((height as f64 / width as f64 - 2.0).abs() < 0.1, "{still}");
    // a seed that is to be drawn is none yet
    let out = |plan: &Value| plan["out"].as_str().unwrap().rsplit_once('.').unwrap().0.to_string();
    assert_eq!(out(&still), "a-boat-SEED");
    assert_eq!(out(&plan(&["generate", "a boat", "--seed", "5"])), "a-boat-5");
    let extended = plan(&["extend", "clip.gif", "a boat", "--frames", "16"]);
    assert_eq!(side(&extended, "width"), side(&extended, "height"), "{extended}");
    // the context is 1 + 8k frames of the 17, and 16 frames are new
    assert!([25, 33].contains(&side(&extended, "frames")), "{extended}");
    assert!(extended["stages"].as_array().unwrap().iter().any(|stage| stage["stage"] == "encode"), "{extended}");
    assert!(extended["downloads"].as_array().is_some_and(|files| files.len() == 2), "{extended}");
    for args in [&["bridge", "clip.gif", "tall.png", "a boat"][..], &["loop", "clip.gif"]] {
        assert_eq!(plan(args)["fits"], true, "{args:?}");
    }
    let names: Vec<_> = scratch.listing().into_iter().map(|(path, _)| path).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// The second run knows how long the first one took.
#[test]
fn a_forecast_is_made_from_earlier_runs() {
    let scratch = Scratch::new();
    let state = scratch.path("state");
    let run = |args: &[&str]| {
        let output = command(&scratch.0, args).env("XDG_STATE_HOME", &state).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let plan = |flags: &[&str]| run(&short(&[&["--dry-run"], flags].concat()));
    let history = || std::fs::read_to_string(state.join("reel/history.jsonl")).unwrap_or_default();
    // a run this short is not worth measuring the machine for
    run(&short(&["-o", "first.gif"]));
    assert_eq!(history().lines().count(), 3, "{}", history()); // text, denoise, decode
    std::fs::remove_file(state.join("reel/history.jsonl")).unwrap();
    // without an earlier run, the machine's speed is measured, once
    assert!(plan(&[]).contains("(estimate, by this machine's speed)"), "{}", plan(&[]));
    let measured = history();
    assert_eq!(measured.lines().count(), 3, "{measured}"); // products, attention, convolutions
    plan(&[]);
    assert_eq!(history(), measured);
    run(&short(&["-o", "a.gif"]));
    let history = history();
    assert_eq!(history.lines().count(), 6, "{history}");
    assert!(!history.contains("red ball"), "{history}");
    assert!(plan(&["-o", "b.gif"]).contains("by earlier runs on this machine"), "{}", plan(&["-o", "b.gif"]));
    let json = |flags: &[&str]| -> Value { serde_json::from_str(&plan(&[&["--json"], flags].concat())).unwrap() };
    let again = json(&["-o", "b.gif"]);
    let stages = again["stages"].as_array().unwrap();
    assert!(stages.iter().all(|stage| stage["seconds"].as_f64().is_some_and(|s| s > 0.0)), "{again}");
    assert!(again["seconds_from"] == "earlier runs" && again["offer"].is_null(), "{again}");
    // what never ran in such a size is estimated beside what did, and the whole is no less than its largest part
    let long = ["generate", "a red ball", "--seed", "7", "--guidance", "1", "--size", "32x32", "--frames", "5"];
    let long = [&long[..], &["--steps", "1000", "-o", "b.gif", "--dry-run"]].concat();
    let table = run(&long);
    let said = "(estimate, text and decode by earlier runs, denoise by this machine's speed)";
    assert!(table.contains(said), "{table}");
    let long: Value = serde_json::from_str(&run(&[&long[..], &["--json"]].concat())).unwrap();
    let denoise = long["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "denoise").unwrap();
    assert_eq!((&denoise["seconds_from"], &long["seconds_from"]), (&"estimate".into(), &"estimate".into()), "{long}");
    assert!(long["seconds"].as_f64().unwrap() > denoise["seconds"].as_f64().unwrap(), "{long}");
    assert!(
        scratch
            .listing()
            .iter()
            .all(|(path, _)| path.starts_with(&state) || path.extension().is_some_and(|end| end == "gif"))
    );
}

/// What takes long says so before it begins, and offers what does not.
#[test]
fn a_long_run_offers_a_smaller_clip() {
    let scratch = Scratch::new();
    let state = scratch.path("state");
    let plan = |flags: &[&str]| -> Value {
        let model = ["generate", "a boat", "--model", "ltx-2b-0.9.5", "--dry-run", "--json", "--memory", "64GiB"];
        let args = [&model[..], flags].concat();
        let output = command(&scratch.0, &args).env("XDG_STATE_HOME", &state).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    plan(&[]);
    // as if this machine made so many operations a second, of whatever kind
    let speed = |giga: f64| {
        let file = state.join("reel/history.jsonl");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| {
            let mut run: Value = serde_json::from_str(line).unwrap();
            (run["operations"], run["seconds"]) = (1_000_000_000u64.into(), (1.0 / giga).into());
            format!("{run}\n")
        });
        std::fs::write(&file, lines.collect::<String>()).unwrap();
    };
    speed(1e3);
    let long = plan(&[]);
    let offer = &long["offer"];
    assert!(long["seconds"].as_f64().unwrap() > 3600.0, "{long}");
    assert!(offer["seconds"].as_f64().is_some_and(|seconds| seconds > 60.0 && seconds <= 600.0), "{long}");
    // as its flags say, and of the same shape
    let flags: Vec<&str> = offer["flags"].as_str().unwrap().split(' ').collect();
    let taken = plan(&flags);
    assert_eq!((&taken["asked"]["width"], &taken["asked"]["height"]), (&offer["width"], &offer["height"]), "{taken}");
    let (asked, made) = (taken["seconds"].as_f64().unwrap(), offer["seconds"].as_f64().unwrap());
    assert!((asked / made - 1.0).abs() < 0.01 && taken["offer"].is_null(), "{taken}\n{offer}");
    let aspect = |of: &Value| of["width"].as_f64().unwrap() / of["height"].as_f64().unwrap();
    assert!((aspect(offer) / aspect(&long["asked"]) - 1.0).abs() < 0.15, "{offer}");
    // scenes stay within the clip
    let scenes = plan(&["--prompt-at", "3.9", "a storm"]);
    let flags = scenes["offer"]["flags"].as_str().unwrap();
    assert!(flags.starts_with("--size ") && !flags.contains("--frames"), "{scenes}");
    speed(1e5);
    assert!(plan(&[])["offer"].is_null());
}

/// Loading it takes seconds where it is large.
#[test]
fn scenes_share_one_decoder() {
    let scratch = Scratch::new();
    let args = ["--frames", "17", "--fps", "8", "--prompt-at", "1", "a blue cube", "-v", "-o", "a.gif"];
    let args = [&["generate", "a red ball", "--seed", "7", "--steps", "1", "--size", "32x32"][..], &args].concat();
    let said = works(&scratch, &args).1;
    assert_eq!(said.matches("the decoder is loaded").count(), 1, "{said}");
    // a scene has frames of its own
    let whole = [&args[..args.len() - 1], &["b.png", "--dry-run", "--json"]].concat();
    let plan: Value = serde_json::from_slice(&works(&scratch, &whole).0).unwrap();
    assert_eq!(plan["scenes"], 2, "{plan}");
}
