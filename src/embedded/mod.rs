//! The small trained models that are part of the program: single files like any other (`reel models pack` makes them).

mod world;

use std::sync::LazyLock;
pub use world::World;

/// Transformer, VAE and T5 of the default model; configuration and tokenizer in its header.
pub const TINY: &[u8] = include_bytes!("tiny.safetensors");

/// Its name in the catalogue, and in its own header.
pub const NAME: &str = "tiny";

/// A model in the program.
pub struct Embedded {
    /// In the catalogue, and in the file's own header.
    pub name: &'static str,
    pub file: &'static [u8],
    /// What it was trained on.
    pub world: LazyLock<World>,
}

/// All of them, the default one first. Each has an entry in `weights.toml` that says `embedded`.
pub static MODELS: [Embedded; 2] = [
    Embedded { name: NAME, file: TINY, world: LazyLock::new(|| World::parse(include_str!("tiny.toml"))) },
    Embedded {
        name: "tiny-128",
        file: include_bytes!("tiny-128.safetensors"),
        world: LazyLock::new(|| World::parse(include_str!("tiny-128.toml"))),
    },
];

/// The model of that name; `None` where none is in the program.
pub fn named(name: &str) -> Option<&'static Embedded> {
    MODELS.iter().find(|model| model.name == name)
}
