//! Compiles the C++ side of the bridge against the headers of the libtorch that torch-sys found.

use std::error::Error;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 4] = ["cpp/dispatch.cpp", "cpp/autograd.cpp", "cpp/profiler.cpp", "cpp/runtime.cpp"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");

    // torch-sys declares `links = "tch"` and exports `libtorch_lib`; cargo hands it to direct dependents only.
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").map_err(
        |_| "torch-sys did not say where libtorch is (DEP_TCH_LIBTORCH_LIB); is it a direct dependency?",
    )?;
    let lib = PathBuf::from(lib);
    let include = lib
        .parent()
        .map(|root| root.join("include"))
        .filter(|include| include.join("ATen").is_dir())
        .ok_or_else(|| format!("no libtorch headers beside {}", lib.display()))?;
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        .std("c++17")
        // These few calls sit under every operator call, so they are optimised in dev builds too.
        .opt_level(2)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .define("GLOG_USE_GLOG_EXPORT", None)
        .extra_warnings(true);
    for path in [include.clone(), include.join("torch/csrc/api/include")] {
        system_include(&mut build, &path);
    }
    // libtorch's loops over threads are templates that want the compiler's OpenMP; nothing else of ours does.
    let mut parallel = build.clone();
    parallel.flag("-fopenmp").file("cpp/parallel.cpp").try_compile("hymba_torch_bridge_parallel")?;
    build.files(SOURCES).try_compile("hymba_torch_bridge")?;
    println!("cargo:rustc-link-lib=gomp");
    graph_library(&include, &abi)?;

    // torch_cuda is never linked: `cuda::open` loads it at run time where it exists.
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    Ok(())
}

/// libtorch's headers warn a great deal under `-Wextra`; as system headers they stay silent and ours do not.
fn system_include(build: &mut cc::Build, path: &Path) {
    build.flag("-isystem").flag(path.as_os_str());
}

/// `cuda/graph.cpp` as a library that links nothing, for `include_bytes!`. Its symbols come from the libtorch_cuda that
/// is open when it is opened, so it is built on machines without a GPU, too; with our own few lines for CUDA's headers.
fn graph_library(include: &Path, abi: &str) -> Result<(), Box<dyn Error>> {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi)
        .define("GLOG_USE_GLOG_EXPORT", None)
        .include("cuda/include");
    for path in [include.to_owned(), include.join("torch/csrc/api/include")] {
        system_include(&mut build, &path);
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("libhymba_cuda_graph.so");
    let mut command = build.get_compiler().to_command();
    command.args(["-shared", "-s", "-o"]).arg(&out).arg("cuda/graph.cpp");
    let status = command.status().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !status.success() {
        return Err(format!("{command:?} failed ({status})").into());
    }
    Ok(())
}
