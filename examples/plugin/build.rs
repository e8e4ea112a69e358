//! Lets the binary find the libtorch that it was built against, without any environment variable.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let folder = std::env::var("LIBTORCH").unwrap_or_default();
    // The libraries find each other only from where they really lie.
    let library = std::fs::canonicalize(format!("{folder}/lib/libtorch_cpu.so"));
    if let Some(folder) = library.as_deref().ok().and_then(std::path::Path::parent) {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{}", folder.display());
    }
}
