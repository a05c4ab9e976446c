//! The VMM process.

fn main() {}
