//! What `extend`, `bridge` and `loop` say and refuse, and outputs that are, or hold, what a run reads.

use super::common::*;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A folder with a clip of 5 frames at 8 a second, and a folder of frames.
fn stage() -> Scratch {
    let scratch = Scratch::new();
    for out in ["clip.gif", "frames/"] {
        let made = reel(&scratch.0, &short(&["-o", out]));
        assert!(made.status.success(), "{}", text(&made.stderr));
    }
    scratch
}

/// A join with as little work as can be.
fn join<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, &["--seed", "1", "--steps", "1", "--guidance", "1", "--size", "32x32"], more].concat()
}

fn works(scratch: &Scratch, args: &[&str]) -> String {
    let output = reel(&scratch.0, args);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{args:?}\n{said}");
    said
}

/// The plan comes from headers: footage is not brought to a size that does not fit.
#[test]
fn a_join_that_does_not_fit_is_refused_at_once() {
    let scratch = stage();
    let begun = Instant::now();
    let args = ["extend", "clip.gif", "on", "--size", "16384x16384", "--memory", "1GiB", "-o", "a.gif"];
    let plan = reel(&scratch.0, &[&args[..], &["--dry-run", "--json"]].concat());
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("a plan");
    assert_eq!(plan["fits"], Value::Bool(false), "{plan}");
    refused(&scratch, &args, &["--memory allows", "fix:"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed()); // 99 s before
}

#[test]
fn any_length_leads_up_to_a_clip() {
    let scratch = stage();
    // 17 frames of footage give the most context; 9 to 12 new ones did not fit their windows
    works(&scratch, &join(&["bridge", "clip.gif", "clip.gif", "on", "--frames", "7"], &["-o", "long.gif"]));
    works(&scratch, &join(&["extend", "long.gif", "on", "--before", "--frames", "9"], &["-o", "before.gif"]));
}

#[test]
fn errors_name_what_was_given() {
    let scratch = stage();
    let cases: [(&[&str], &[&str]); 3] = [
        (&["--seconds", "80000"], &["--seconds 80000 at 8 frames a second", "fix: --seconds 12500"]),
        (&["--frames", "99998"], &["99998 new frames and 5 of context", "fix: fewer --frames"]),
        (&["--frames", "8", "--prompt-at", "1.5", "x"], &["--prompt-at 1.5:", "8 frames at 8", "frame 12"]),
    ];
    each(&cases, |(flags, words)| {
        refused(&scratch, &join(&["extend", "clip.gif", "on"], &[flags, &["-o", "out.gif"][..]].concat()), words)
    });
}

#[test]
fn a_rate_that_the_footage_has_is_not_changed() {
    let scratch = stage();
    let args = |clip| join(&["extend", clip, "on", "--frames", "4", "--fps", "30"], &["-o", "out.gif", "--force"]);
    let said = works(&scratch, &args("clip.gif"));
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("--fps has no effect")).collect();
    assert!(lines.len() == 1 && lines[0].contains("8.000"), "{said}");
    assert!(!works(&scratch, &args("frames")).contains("--fps"));
}

#[test]
fn what_is_remarkable_of_footage_is_said_once() {
    let scratch = stage();
    let file = std::fs::File::create(scratch.path("clear.gif")).unwrap();
    let mut encoder = image::codecs::gif::GifEncoder::new(file);
    for i in 0..5 {
        let picture =
            image::RgbaImage::from_fn(32, 32, |x, _| image::Rgba([i * 40, 90, 60, if x > 4 { 255 } else { 0 }]));
        let delay = image::Delay::from_numer_denom_ms(100, 1);
        encoder.encode_frame(image::Frame::from_parts(picture, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    let said = works(&scratch, &join(&["loop", "clear.gif", "on", "--frames", "3"], &["-o", "out.gif"]));
    assert_eq!(said.lines().filter(|line| line.contains("transparent")).count(), 1, "{said}");
}

#[test]
fn a_join_is_told_in_a_word() {
    let scratch = stage();
    let args = |more: &[&'static str]| {
        join(&["extend", "clip.gif", "on", "--frames", "4"], &[&["-o", "a.gif", "--force"], more].concat())
    };
    let said = works(&scratch, &args(&[]));
    assert!(said.lines().any(|line| line == "join: smooth" || line == "join: visible"), "{said}");
    assert!(!said.contains("of 255"));
    assert!(works(&scratch, &args(&["-v"])).contains("of 255"));
    let said = works(&scratch, &args(&["--progress", "json"]));
    let done: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let seam = &done["seams"][0];
    assert!(
        seam["join"].is_string() && seam["jump"]["colour"].is_number() && seam["own"]["motion"].is_number(),
        "{said}"
    );
}

#[test]
#[cfg(feature = "h264")]
fn footage_of_an_odd_size_becomes_an_mp4() {
    let scratch = Scratch::new();
    let mut args = short(&["-o", "odd.gif"]);
    let size = args.iter().position(|arg| *arg == "32x32").unwrap();
    args[size] = "37x33";
    works(&scratch, &args);
    for (command, more) in [("extend", &["on"][..]), ("loop", &[])] {
        let args = [&[command, "odd.gif"], more, &["--frames", "4"]].concat();
        let said = works(&scratch, &join(&args, &["-o", "even.mp4", "--force"]));
        assert!(said.contains("37x33") && said.contains("even.mp4: 38x34"), "{said}");
    }
    let said = works(&scratch, &join(&["extend", "odd.gif", "on", "--frames", "4"], &["-o", "out.gif"]));
    assert!(said.contains("out.gif: 37x33") && !said.contains("38x34"), "{said}");
}

/// What a run reads is never what it writes, whatever the names, and `--force` does not change that.
#[test]
fn outputs_that_are_inputs_are_refused() {
    let scratch = stage();
    std::fs::copy(scratch.path("clip.gif"), scratch.path("other.gif")).unwrap();
    scratch.write("weights.gif", reel::embedded::TINY);
    #[cfg(unix)]
    {
        std::fs::hard_link(scratch.path("clip.gif"), scratch.path("hard.gif")).unwrap();
        std::os::unix::fs::symlink("clip.gif", scratch.path("soft.gif")).unwrap();
        std::os::unix::fs::symlink("frames", scratch.path("linked")).unwrap();
    }
    let mut cases: Vec<(&[&str], &str, &str)> = vec![
        (
            &["bridge", "frames/00000.png", "frames/00004.png", "x"],
            "frames/",
            "holds the clip itself, `frames/00000.png`",
        ),
        (&["extend", "frames/00000.png", "x"], "frames/", "the clip itself"),
        (&["extend", "frames", "x"], "frames/", "the clip itself"),
        (&["extend", "frames", "x"], "frames/00003.png", "part of the clip itself"),
        (&["extend", "frames", "x"], "./", "holds the clip itself"),
        (&["extend", "clip.gif", "x"], "./clip.gif", "the clip itself"),
        (&["bridge", "other.gif", "clip.gif", "x"], "clip.gif", "the clip itself"),
        (&["loop", "clip.gif"], "clip.gif", "the clip itself"),
        (&["generate", "x", "--image", "clip.gif"], "clip.gif", "the clip itself, which --image reads"),
        (&["generate", "x", "--last-image", "frames/00001.png"], "frames/", "--last-image"),
        (&["generate", "x", "--keyframe", "clip.gif@0"], "clip.gif", "--keyframe"),
        (&["generate", "x", "--model", "weights.gif"], "weights.gif", "the model itself, which --model reads"),
        (&["generate", "x", "--text-encoder", "weights.gif"], "weights.gif", "--text-encoder"),
        (&["generate", "x", "--vae", "weights.gif"], "weights.gif", "--vae"),
        (&["generate", "x", "--tokenizer", "weights.gif"], "weights.gif", "--tokenizer"),
        (&["generate", "x", "--lora", "weights.gif:0.5"], "weights.gif", "--lora"),
        (&["generate", "x", "--upscaler", "weights.gif"], "weights.gif", "--upscaler"),
    ];
    if cfg!(unix) {
        cases.push((&["extend", "clip.gif", "x"], "hard.gif", "the clip itself"));
        cases.push((&["extend", "clip.gif", "x"], "soft.gif", "the clip itself"));
        cases.push((&["extend", "soft.gif", "x"], "clip.gif", "the clip itself"));
        cases.push((&["extend", "frames", "x"], "linked/", "the clip itself"));
        cases.push((&["extend", "linked", "x"], "frames/", "the clip itself"));
    }
    each(&cases, |(args, out, words)| {
        refused(&scratch, &[args, &["-o", out, "--force"][..]].concat(), &[words, "fix:"])
    });
}

/// `--force` takes away what it replaces, in the end, and nothing else.
#[test]
fn frames_are_replaced_when_the_new_ones_are_there() {
    let scratch = stage();
    scratch.write("frames/notes.txt", "mine");
    let old = std::fs::read(scratch.path("frames/00000.png")).unwrap();
    refused(&scratch, &short(&["-o", "frames/"]), &["00000.png", "--force"]);
    let mut args = short(&["-o", "frames/", "--force"]);
    let seed = args.iter().position(|arg| *arg == "7").unwrap();
    args[seed] = "8";
    let fewer = args.iter().position(|arg| *arg == "5").unwrap();
    args[fewer] = "3";
    works(&scratch, &args);
    let mut names: Vec<String> = std::fs::read_dir(scratch.path("frames"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["00000.png", "00001.png", "00002.png", "notes.txt"]);
    assert_ne!(std::fs::read(scratch.path("frames/00000.png")).unwrap(), old);
}

/// A link stays a link, and what it leads to is replaced.
#[test]
#[cfg(unix)]
fn a_link_is_followed() {
    let scratch = stage();
    std::fs::create_dir(scratch.path("there")).unwrap();
    scratch.write("there/a.gif", "old");
    std::os::unix::fs::symlink("there/a.gif", scratch.path("link.gif")).unwrap();
    refused(&scratch, &short(&["-o", "link.gif"]), &["exists", "--force"]);
    works(&scratch, &short(&["-o", "link.gif", "--force"]));
    assert!(scratch.path("link.gif").is_symlink());
    assert!(std::fs::read(scratch.path("there/a.gif")).unwrap().starts_with(b"GIF89a"));
}

#[test]
fn a_folder_that_is_there_gets_a_named_file() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("clips.mp4")).unwrap(); // whatever it is called
    let name = if cfg!(feature = "h264") { "a-red-ball-7.mp4" } else { "a-red-ball-7.webp" };
    let said = works(&scratch, &short(&["-o", "clips.mp4"]));
    assert!(scratch.path("clips.mp4").join(name).is_file() && said.contains(name), "{said}");
    refused(&scratch, &short(&["-o", "clips.mp4"]), &[name, "exists", "--force"]);
    works(&scratch, &short(&["-o", "."]));
    assert!(scratch.path(name).is_file());
    // a `/` at the end, or a name that is not there and has no extension, means frames
    works(&scratch, &short(&["-o", "clips.mp4/"]));
    works(&scratch, &short(&["-o", "new"]));
    assert!(scratch.path("clips.mp4/00004.png").is_file() && scratch.path("new/00004.png").is_file());
}

#[test]
#[cfg(target_os = "linux")]
fn names_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    let name = std::ffi::OsStr::from_bytes(b"\xff.gif");
    let made = command(&scratch.0, &short(&["-o"])).arg(name).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(std::fs::read(scratch.0.join(name)).unwrap().starts_with(b"GIF89a"));
}
