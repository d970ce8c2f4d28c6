//! reel: a prompt becomes a video, on your own machine.
//!
//! The path from prompt to frames, room by room:
//!
//! [`cli`] turns arguments into a [`request::Request`]; [`generate`] tells the story. It opens what `--model` names
//! ([`checkpoint`], over the mapped files of [`weights`]), has [`text`] turn the prompt into vectors, draws [`noise`], lets
//! the [`sampler`] take it down the noise levels over the velocity that [`models`] give, decodes the latents, frame group by
//! frame group, and hands the frames to [`video`] as they come.
//!
//! [`geometry`] holds the arithmetic between pixels and latents, [`nn`] the layers that candle lacks or does slowly,
//! [`plan`] what a run needs at the least, [`device`] where and in what precision, [`progress`] what a person sees meanwhile, [`embedded`] the tiny model that is
//! part of the program.

pub mod checkpoint;
pub mod cli;
pub mod condition;
pub mod config;
pub mod device;
pub mod embedded;
pub mod generate;
pub mod geometry;
pub mod inputs;
pub mod join;
pub mod models;
pub mod nn;
pub mod noise;
pub mod plan;
pub mod progress;
pub mod request;
pub mod sampler;
pub mod seam;
pub mod stages;
pub mod text;
pub mod video;
pub mod weights;
pub mod windows;
