//! What the targets share: an input as a sequence of choices, a guest's driver that makes them, files.

pub mod choices;
pub mod guest;
pub mod scratch;
