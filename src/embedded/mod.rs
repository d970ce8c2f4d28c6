//! The tiny trained model that is part of the program: a single file like any other (`reel models pack` makes it).

mod world;

pub use world::{World, world};

/// Transformer, VAE and T5; configuration and tokenizer in its header.
pub const TINY: &[u8] = include_bytes!("tiny.safetensors");

/// Its name in the catalogue, and in its own header.
pub const NAME: &str = "tiny";
