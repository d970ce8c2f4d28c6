//! Stills and clips that cannot be used, each refused before any weights load.

use super::common::*;

/// A folder with a still, a clip and things that are neither.
fn stage() -> Scratch {
    let scratch = Scratch::new();
    image::RgbImage::from_pixel(40, 30, image::Rgb([200, 40, 30])).save(scratch.path("still.png")).unwrap();
    let made = reel(&scratch.0, &short(&["-o", "clip.gif"]));
    assert!(made.status.success(), "{}", text(&made.stderr));
    scratch.write("text.png", "no picture");
    scratch.write("empty.mp4", "");
    scratch.write("text.mp4", "no video at all, but long enough to look at");
    std::fs::create_dir(scratch.path("nothing")).unwrap();
    let gif = std::fs::read(scratch.path("clip.gif")).unwrap();
    scratch.write("cut.gif", &gif[..gif.len() / 3]);
    scratch
}

#[test]
fn pictures_that_cannot_be_held() {
    let scratch = stage();
    let cases: [(&[&str], &[&str]); 14] = [
        (&["--image", "none.png"], &["--image", "none.png"]),
        (&["--image", "text.png"], &["text.png", "fix:"]),
        (&["--image", "empty.mp4"], &["empty.mp4"]),
        (&["--image", "nothing"], &["nothing"]),
        (&["--last-image", "none.png"], &["--last-image"]),
        (&["--keyframe", "still.png"], &["FILE@FRAME"]),
        (&["--keyframe", "still.png@x"], &["FILE@FRAME"]),
        (&["--keyframe", "still.png@0:2"], &["--keyframe", "strength"]),
        (&["--keyframe", "still.png@5"], &["outside the clip", "0 to 4"]),
        (&["--keyframe", "still.png@-6"], &["outside the clip"]),
        (&["--image", "still.png", "--keyframe", "still.png@0"], &["already"]),
        (&["--image", "still.png", "--image-crf", "52"], &["--image-crf", "51"]),
        (&["--image", "still.png", "--fit", "squeeze"], &["--fit"]),
        (&["--image", "cut.gif"], &["cut.gif"]),
    ];
    each(&cases, |(flags, words)| refused(&scratch, &short(&[flags, ["-o", "out.gif"].as_slice()].concat()), words));
}

#[test]
fn footage_that_cannot_be_joined() {
    let scratch = stage();
    let cases: [(&[&str], &[&str]); 12] = [
        (&["extend", "none.mp4", "on"], &["none.mp4"]),
        (&["extend", "text.mp4", "on"], &["text.mp4"]),
        (&["extend", "empty.mp4", "on"], &["empty.mp4"]),
        (&["extend", "cut.gif", "on"], &["cut.gif"]),
        (&["extend", "nothing", "on"], &["nothing"]),
        (&["extend", "clip.gif", "on", "--context", "0"], &["--context"]),
        (&["extend", "clip.gif", "on", "--seconds", "-1"], &["--seconds"]),
        (&["extend", "clip.gif", "on", "--out", "clip.gif", "--force"], &["the clip itself"]),
        (&["bridge", "clip.gif", "none.gif", "on"], &["none.gif"]),
        (&["bridge", "clip.gif"], &["error"]),
        (&["loop", "none.gif"], &["none.gif"]),
        (&["loop", "clip.gif", "--prompt-at", "1", "x"], &["--prompt-at"]),
    ];
    each(&cases, |(args, words)| {
        let out: &[&str] = if args.contains(&"--out") { &[] } else { &["-o", "out.gif"] };
        refused(&scratch, &[args, ["--steps", "1", "--seed", "1"].as_slice(), out].concat(), words)
    });
}

#[test]
fn scenes_that_cannot_be() {
    let scratch = stage();
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--prompt-at", "soon", "x"], &["--prompt-at", "seconds"]),
        (&["--prompt-at", "9", "x"], &["--prompt-at 9"]),
        (&["--prompt-at", "0.4", "x", "--prompt-at", "0.2", "y"], &["--prompt-at", "rise"]),
        (&["--prompt-at", "1"], &["--prompt-at"]),
    ];
    each(&cases, |(flags, words)| refused(&scratch, &short(&[flags, ["-o", "out.gif"].as_slice()].concat()), words));
}
