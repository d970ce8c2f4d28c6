//! Models by name: the catalogue of what there is, and the store of what was pulled.

pub mod catalogue;
pub mod store;
