//! The words that mean something to a built-in model, for prompts that go beyond them.

use serde::Deserialize;
use std::collections::HashSet;

/// What a model was trained on, in words.
pub struct World {
    /// All of it, for help.
    pub about: String,
    /// For one line.
    pub short: String,
    words: HashSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    short: String,
    named: String,
    ignored: String,
}

impl World {
    /// Reads one that is compiled in; every one of them is read by a test.
    pub(super) fn parse(text: &str) -> Self {
        let file: File = toml::from_str(text).expect("a world, compiled in and read by a test");
        let words =
            [file.named, file.ignored].iter().flat_map(|all| all.split_whitespace()).map(String::from).collect();
        World { about: file.about, short: file.short, words }
    }

    /// The words of a prompt that the model was never told, each once, as typed.
    pub fn unknown<'a>(&self, prompt: &'a str) -> Vec<&'a str> {
        let mut found: Vec<&str> = vec![];
        let apostrophe = |c: char| c == '\'' || c == '’';
        let words = prompt.split(|c: char| !c.is_alphanumeric() && !apostrophe(c));
        for word in words.map(|word| word.trim_matches(apostrophe)) {
            let lower = word.to_lowercase().replace('’', "'");
            let bare = lower.strip_suffix("'s").unwrap_or(&lower);
            if !bare.is_empty()
                && !self.words.contains(bare)
                && !found.iter().any(|known| known.eq_ignore_ascii_case(word))
            {
                found.push(word);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::embedded::{NAME, World, named};

    fn world() -> &'static World {
        &named(NAME).unwrap().world
    }

    #[test]
    fn captions_of_its_training_are_known() {
        let things =
            ["ball", "round ball", "sphere", "square", "box", "block", "cube", "triangle", "star", "heart", "car"];
        let colours =
            ["red", "bright red", "orange", "yellow", "green", "cyan", "turquoise", "light blue", "blue", "purple"];
        let motions =
            ["stands still", "does not move", "not moving", "bounces up and down", "hops", "jumping up and down"];
        let more = [
            "moves in a circle",
            "flies in circles",
            "orbits",
            "gets bigger",
            "becoming larger",
            "expands",
            "floats up",
        ];
        let last = [
            "goes up into the air",
            "drops to the ground",
            "drives to the right",
            "rolling towards the left",
            "glides",
        ];
        let scenery =
            ["on green grass under a blue sky", "in a grassy field", "on a lawn", "in a park", "under the stars"];
        let plain =
            ["in the night sky", "in space", "on yellow sand", "on a sandy beach", "in front of a gray wall", ""];
        for (i, motion) in [&motions[..], &more, &last].concat().iter().enumerate() {
            let (thing, colour) = (things[i % things.len()], colours[i % colours.len()]);
            let place = [&scenery[..], &plain].concat()[i % 11];
            let caption = format!("A video of a tiny {colour} {thing} {motion} {place}.");
            assert_eq!(world().unknown(&caption), Vec::<&str>::new(), "{caption}");
        }
        for typed in
            ["red ball, grass, bouncing", "The ball's color: RED!", "the red ball jumps", "a star at night", "  "]
        {
            assert_eq!(world().unknown(typed), Vec::<&str>::new(), "{typed}");
        }
    }

    #[test]
    fn other_words_are_named_once_as_typed() {
        let unknown = |prompt| world().unknown(prompt);
        assert_eq!(unknown("a cat sleeps on a sofa"), ["cat", "sleeps", "sofa"]);
        assert_eq!(unknown("a red Hexagon, a red hexagon"), ["Hexagon"]);
        assert_eq!(unknown("asdf qwer zxcv"), ["asdf", "qwer", "zxcv"]);
        assert_eq!(unknown("ein roter Ball hüpft"), ["ein", "roter", "hüpft"]);
        assert_eq!(unknown("赤いボール"), ["赤いボール"]);
        assert_eq!(unknown("ocean waves at sunset"), ["ocean", "waves", "sunset"]);
    }

    #[test]
    fn the_larger_world_holds_the_smaller_one_and_more() {
        let full = &named("tiny-128").unwrap().world;
        let missing: Vec<_> = world().words.difference(&full.words).collect();
        assert!(missing.is_empty(), "{missing:?}");
        for caption in [
            "a white rocket rises in space",
            "an orange fish swims to the right in the sea, slow zoom in",
            "the camera pans left, a small violet hoop on a wooden floor",
            "while it snows, a huge turquoise sailboat sways left and right",
            "a black bird flies to the left behind a green tree as the sun sets",
            "a pink spaceship zigzagging across the screen under an orange evening sky",
            "a cyan ship next to a big yellow ring over the waves",
            "A clip of a star twirling against a light pink background.",
        ] {
            assert!(!world().unknown(caption).is_empty(), "{caption}");
            assert_eq!(full.unknown(caption), Vec::<&str>::new(), "{caption}");
        }
        assert_eq!(full.unknown("a cat sleeps on a sofa"), ["cat", "sleeps", "sofa"]);
    }
}
