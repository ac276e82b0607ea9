//! The one binary: `flotilla`.
fn main() {}
