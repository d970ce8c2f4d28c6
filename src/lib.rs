//! reel: a prompt becomes a video, on your own machine.
//!
//! The path from prompt to frames, room by room:
//!
//! [`cli`] turns arguments into a [`job::request::Request`]; [`pipeline`] tells the story. It opens what `--model` names
//! ([`models::bundle`], over the mapped files of [`weights`], by the [`hub`]'s catalogue and its store of pulled files) and the
//! stills and clips to hold to ([`pipeline::inputs`]), decides what is open ([`planning::settings`]), says what it will take and
//! cuts it to the memory that there is ([`planning`], [`planning::forecast`]), and then runs the [`pipeline::stages`]:
//! [`models::text`] turns the prompt into vectors; window after window ([`job::windows`]) the model's family ([`models::networks`])
//! lays what is held out among [`sampling::noise`] and takes it down the noise levels of the [`sampling::solver`], step by step, each
//! of which moves the run's [`pipeline::cursor`] by one; the latents are decoded, frame group by frame group ([`pipeline::decode`]),
//! into frames that [`video`] writes as they come ([`planning::outputs`] says where). [`pipeline::join`] puts a made part and
//! footage together.
//!
//! [`nn`] holds the layers that candle lacks or does slowly, [`platform`] what the system gives (devices, files that appear whole
//! or not at all, memory, what a person sees meanwhile), [`mod@bench`] times each stage, [`embedded`] holds the tiny models that
//! are part of the program. What engineers need beyond the code is in [`guide`]; its map names every file.

pub mod bench;
pub mod cli;
pub mod embedded;
pub mod guide;
pub mod hub;
pub mod job;
pub mod models;
pub mod nn;
pub mod pipeline;
pub mod planning;
pub mod platform;
pub mod sampling;
pub mod video;
pub mod weights;
