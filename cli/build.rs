//! Lets the binary find libtorch where the set-up put it, or installed beside it, without any environment variable.

fn main() {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{manifest}/../.libtorch/torch/lib");
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/hymba_plus");
    println!("cargo:rerun-if-changed=build.rs");
}
