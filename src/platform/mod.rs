//! What the machine and its system give: files that appear whole or not at all.

pub mod files;
