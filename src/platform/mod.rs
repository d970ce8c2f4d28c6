//! What the machine and its system give: files that appear whole or not at all, files in memory, memory and disk, threads, signals.

pub mod files;
pub mod arenas;
pub mod machine;
pub mod mapped;
pub mod signals;
pub mod threads;
