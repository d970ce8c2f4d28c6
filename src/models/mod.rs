//! The families of video models that reel knows.

pub mod bundle;
pub mod locate;
pub mod ltx;
pub mod pack;
pub mod parts;
pub mod random;
pub mod text;
