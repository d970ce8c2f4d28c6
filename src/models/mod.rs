//! The families of video models that reel knows.

pub mod ltx;
