//! reel: a prompt becomes a video, on your own machine.
//!
//! The path from prompt to frames, room by room:
//!
//! [`cli`] turns arguments into a [`request::Request`]; [`generate`] tells the story. It opens what `--model` names
//! ([`checkpoint`], over the mapped files of [`weights`], whose store pulls what has a name) and the stills and clips to
//! hold to ([`inputs`]), says what it will take and cuts it to the memory that there is ([`outlook`], by a [`plan`] and the
//! machine's [`history`]), and then runs the [`stages`]: [`text`] turns the prompt into vectors, [`condition`] lays what is
//! held out among [`noise`], the [`sampler`] goes down the noise levels over the velocity that [`models`] give, [`windows`]
//! after window, and the latents are decoded, frame group by frame group ([`pixels`]), into frames that [`video`] writes as
//! they come ([`outputs`] says where). [`join`] puts a made part and footage together, and [`seam`] sees to their colours.
//!
//! Whose way a run follows, that of a model's makers or diffusers', is in [`recipe`].
//!
//! [`geometry`] holds the arithmetic between pixels and latents, [`ranges`] what a number that is asked for may be, [`nn`] the
//! layers that candle lacks or does slowly,
//! [`config`] the strict reading of a checkpoint's JSON, [`device`] where and in what precision, [`folders`] where the user's files
//! of this program are, [`platform`] what the system gives (files that appear whole or not at all), [`progress`] what a person
//! sees meanwhile, [`shown`] how text that others wrote reaches a terminal, [`mod@bench`] how long each stage takes, [`embedded`]
//! the tiny models that are part of the program. What engineers need beyond the code is in [`guide`].

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod condition;
pub mod config;
pub mod device;
pub mod embedded;
pub mod folders;
pub mod generate;
pub mod geometry;
pub mod guidance;
pub mod guide;
pub mod history;
pub mod inputs;
pub mod join;
pub mod models;
pub mod nn;
pub mod noise;
pub mod outlook;
pub mod outputs;
pub mod passes;
pub mod pixels;
pub mod plan;
pub mod platform;
pub mod progress;
pub mod ranges;
pub mod recipe;
pub mod request;
pub mod sampler;
pub mod seam;
pub mod shown;
pub mod stages;
pub mod text;
pub mod upscaler;
pub mod video;
pub mod weights;
pub mod windows;
