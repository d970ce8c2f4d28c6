//! What stands below the flags of `--help`: examples, and what the built-in model knows.

use crate::embedded;
use std::fmt::Write;

/// Two columns: a command, what it does.
fn examples(all: &[(&str, &str)]) -> String {
    let mut text = "Examples:\n".to_string();
    for (command, what) in all {
        let _ = writeln!(text, "  {command}\n      {what}"); // a string takes all
    }
    text
}

/// Below `reel generate -h`.
pub fn generate() -> String {
    examples(&[
        (
            r#"reel generate "a yellow star grows at night" --seed 7 -o star.mp4"#,
            "with the built-in model, in a second",
        ),
        (
            r#"reel generate "the ball rolls to the right" --image still.png -o rolls.webp"#,
            "a still becomes the first frame",
        ),
        (
            r#"reel generate "waves at dusk" --model ltx-2b-0.9.8-distilled --dry-run"#,
            "what a real model takes: download, memory, time",
        ),
    ])
}

/// Below `reel generate --help`.
pub fn generate_long() -> String {
    let mut text = generate();
    for model in &embedded::MODELS {
        let which = match model.name == embedded::NAME {
            true => "The built-in model".to_string(),
            false => format!("`--model {}`, built in too,", model.name),
        };
        text.push_str(&format!("\n{which} knows: {}.", model.world.about));
    }
    text + "\n`reel models list` has others."
}

/// Below `reel extend -h`.
pub fn extend() -> String {
    examples(&[
        (r#"reel extend ball.mp4 "a red ball bounces on green grass" --seconds 4 -o longer.mp4"#, "four seconds more"),
        (r#"reel extend ball.mp4 "a red ball bounces on green grass" --before"#, "what came before it"),
    ])
}

/// Below `reel bridge -h`.
pub fn bridge() -> String {
    examples(&[(r#"reel bridge first.png last.png "a red ball grows" -o between.mp4"#, "from one still to another")])
}

/// Below `reel loop -h`.
pub fn close() -> String {
    examples(&[(
        r#"reel loop ball.mp4 "a red ball bounces on green grass" -o loop.webp"#,
        "the end leads back into the start",
    )])
}

/// Below `reel -h`.
pub fn reel() -> String {
    examples(&[
        (
            r#"reel generate "a yellow star grows at night" --seed 7 -o star.mp4"#,
            "with the built-in model, in a second",
        ),
        ("reel models list", "real models, and what each takes"),
    ])
}
