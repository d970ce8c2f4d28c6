//! The way down the noise levels: schedules and solver, guidance, and the generator of the noise. Knows no model.

pub mod guidance;
pub mod noise;
pub mod solver;
