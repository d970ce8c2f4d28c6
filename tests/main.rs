//! The tests from outside the library, as one executable: each that there is links the whole library once more.

mod cancel;
mod cli;
mod common;
mod end_to_end;
mod full_size;
mod goldens;
mod laws;
mod layout;
mod lora;
mod makers;
mod plan;
mod quantized;
mod recipes;
mod session;
mod stills;
mod store;
