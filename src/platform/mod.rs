//! What the machine and its system give: files that appear whole or not at all, files in memory, memory and disk, threads, signals,
//! standard streams, and how a run says how far it is and is stopped.

pub mod arenas;
pub mod cancel;
pub mod device;
pub mod fault;
pub mod files;
pub mod folders;
pub mod machine;
pub mod mapped;
pub mod progress;
pub mod report;
pub mod shown;
pub mod signals;
pub mod streams;
pub mod threads;
pub mod typed;
