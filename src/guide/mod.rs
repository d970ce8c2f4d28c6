//! What an engineer wants to know beyond the code, by subject: the README is for people who want a video.
//!
//! | page | what it says |
//! | --- | --- |
//! | [`built_in`] | the models inside the binary |
//! | [`building`] | features of the build, platforms, the patents on H.264 |
//! | [`numbers`] | how near the numbers are to diffusers', in each precision; the two conventions of sampling |
//! | [`quantising`] | which matrices become blocks, how they are multiplied, what that loses |
//! | [`memory`] | how a run is cut to a memory, and how near the plan is to what was measured |
//! | [`speed`] | the benchmark, and times beside PyTorch |
//! | [`footage`] | what is read and written, joins, long clips, scenes |
//! | [`store`] | pulled files: where they go, how they are checked |
//! | [`map`] | the file map, the tests, what a change has to pass |

#[doc = include_str!("built_in.md")]
pub mod built_in {}

#[doc = include_str!("building.md")]
pub mod building {}

#[doc = include_str!("numbers.md")]
pub mod numbers {}

#[doc = include_str!("quantising.md")]
pub mod quantising {}

#[doc = include_str!("memory.md")]
pub mod memory {}

#[doc = include_str!("speed.md")]
pub mod speed {}

#[doc = include_str!("footage.md")]
pub mod footage {}

#[doc = include_str!("store.md")]
pub mod store {}

#[doc = include_str!("map.md")]
pub mod map {}
