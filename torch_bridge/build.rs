//! Compiles the C++ side of the bridge against the headers torch-sys uses.
fn main() {}
