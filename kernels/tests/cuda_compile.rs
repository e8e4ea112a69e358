//! Compiles kernels without a GPU: NVRTC needs none.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kernels::cuda::{Compiled, Compiler, Define, Header, Program, Value, programs};
use tch::Device;

/// The architectures that the project promises.
const ARCHITECTURES: [i32; 5] = [80, 89, 90, 100, 120];

static HEADER: Header = Header {
    name: "half.cuh",
    text: "__device__ float to_float(unsigned short bits) {\n    return __uint_as_float((unsigned int)bits << 16);\n}\n",
};

static GOOD: Program = Program {
    headers: &[&HEADER],
    ..Program::new(
        "tests/good.cu",
        "#include \"half.cuh\"\n\
         extern \"C\" __global__ void widen(const unsigned short* x, float* y, long long n) {\n\
         \x20   long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;\n\
         \x20   if (i < n) y[i] = SCALE * to_float(x[i]);\n\
         }\n",
    )
};

const DEFINES: &[Define] = &[("SCALE", Value::Int(2))];

/// The compiler, if there is one. On CI there is, or the test fails.
fn compiler(cache: Option<PathBuf>) -> Option<Compiler> {
    match Compiler::with_cache(cache) {
        Ok(compiler) => Some(compiler),
        Err(reason) => {
            assert!(std::env::var_os("CI").is_none(), "kernels must be compiled on CI: {reason}");
            println!("skipped: {reason}");
            None
        }
    }
}

fn good(compiler: &Compiler) -> Compiled {
    compiler.compile(&GOOD, DEFINES, 90).unwrap()
}

fn cu_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            cu_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_is_a_program() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // The binary may run where the sources are not.
    if !source.is_dir() {
        println!("skipped: no {}", source.display());
        return;
    }
    let mut files = Vec::new();
    cu_files(&source, &mut files);
    let mut files: Vec<_> =
        files.iter().map(|file| file.strip_prefix(&source).unwrap().to_str().unwrap().to_owned()).collect();
    files.sort();
    let registered: Vec<_> = programs().iter().map(|program| program.path.to_owned()).collect();
    assert_eq!(files, registered, "each .cu file is declared once by `program!`");
}

#[test]
fn every_program_compiles_for_every_architecture() {
    // What has not changed since the last run is not compiled again.
    let Some(compiler) = compiler(Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubins"))) else {
        return;
    };
    println!("{}", compiler.description());
    let mut jobs = Vec::new();
    for program in programs() {
        for (index, variant) in program.variants.iter().enumerate() {
            // The first variant everywhere, the others for the oldest and the newest.
            let architectures = if index == 0 { &ARCHITECTURES[..] } else { &[80, 120] };
            jobs.extend(architectures.iter().map(|architecture| (program, *variant, *architecture)));
        }
    }
    let jobs = Mutex::new(jobs);
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some((program, variant, architecture)) = jobs.lock().unwrap().pop() else { return };
            let macros: Vec<_> = variant.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let what = format!("{} sm_{architecture} {}", program.path, macros.join(" "));
            let failure = match compiler.compile(program, variant, architecture) {
                Ok(compiled) if compiled.log.is_empty() => continue,
                Ok(compiled) => format!("{what} warns:\n{}", compiled.log),
                Err(log) => format!("{what}:\n{log}"),
            };
            failures.lock().unwrap().push(failure);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn headers_macros_and_architectures_reach_the_compiler() {
    let Some(compiler) = compiler(None) else { return };
    for architecture in ARCHITECTURES {
        let compiled = compiler.compile(&GOOD, DEFINES, architecture).unwrap();
        assert_eq!((&compiled.cubin[..4], compiled.log.as_str()), (&b"\x7fELF"[..], ""));
    }
    let missing = compiler.compile(&GOOD, &[], 90).unwrap_err();
    assert!(missing.contains("kernels/src/tests/good.cu(4): error: identifier \"SCALE\""), "{missing}");

    // A card that NVRTC does not know by number gets the code of the one before it; one too old or unheard of, none.
    let architectures = [80, 86, 87, 90, 121].map(|capability| compiler.architecture(capability).unwrap());
    assert_eq!(architectures, [80, 86, 87, 90, 121]);
    assert_eq!(compiler.architecture(102), Ok(100));
    assert!(compiler.architecture(75).unwrap_err().contains("this card is sm_75"));
    assert!(compiler.architecture(990).unwrap_err().contains("knows no card like sm_990"));
}

#[test]
fn a_mistake_is_reported_with_file_and_line() {
    static HEADER: Header = Header { name: "part.cuh", text: "\n__device__ int f() { return nothing; }\n" };
    static BAD_HEADER: Program =
        Program { headers: &[&HEADER], ..Program::new("tests/bad.cu", "#include \"part.cuh\"\n") };
    static BAD: Program =
        Program::new("tests/bad.cu", "// first line\n\nextern \"C\" __global__ void k() {\n    oops\n}\n");
    let Some(compiler) = compiler(None) else { return };
    let log = compiler.compile(&BAD, &[], 80).unwrap_err();
    assert!(log.contains("kernels/src/tests/bad.cu(4): error: identifier \"oops\" is undefined"), "{log}");
    // The line of a header is the header's.
    let log = compiler.compile(&BAD_HEADER, &[], 80).unwrap_err();
    assert!(log.contains("part.cuh(2): error: identifier \"nothing\" is undefined"), "{log}");
}

#[test]
fn what_only_one_architecture_has_is_asked_for() {
    static SPECIFIC: Program = Program {
        specific: true,
        ..Program::new(
            "tests/specific.cu",
            "extern \"C\" __global__ void k() {\n    asm volatile(\"wgmma.fence.sync.aligned;\");\n}\n",
        )
    };
    static GENERAL: Program = Program { specific: false, ..Program::new(SPECIFIC.path, SPECIFIC.text) };
    let Some(compiler) = compiler(None) else { return };
    assert!(compiler.compile(&SPECIFIC, &[], 90).is_ok());
    assert!(compiler.compile(&GENERAL, &[], 90).unwrap_err().contains("wgmma"));
}

#[test]
fn the_second_time_comes_from_the_cache() {
    static FAST: Program =
        Program { options: &["--use_fast_math"], headers: &[&HEADER], ..Program::new(GOOD.path, GOOD.text) };
    let folder = tempfile::tempdir().unwrap();
    let Some(compiler) = compiler(Some(folder.path().join("deep/kernels"))) else { return };
    let first = good(&compiler);
    let second = good(&compiler);
    assert!(!first.cached && second.cached && first.cubin == second.cubin);
    // Another process would find it too; another architecture, macro or option is another entry.
    assert!(!compiler.compile(&GOOD, DEFINES, 80).unwrap().cached);
    assert!(!compiler.compile(&GOOD, &[("SCALE", Value::Int(3))], 90).unwrap().cached);
    assert!(!compiler.compile(&FAST, DEFINES, 90).unwrap().cached);
    let entries = fs::read_dir(folder.path().join("deep/kernels")).unwrap().count();
    assert_eq!(entries, 4, "and nothing else lies there");
}

#[test]
fn a_damaged_entry_is_compiled_anew() {
    let folder = tempfile::tempdir().unwrap();
    let Some(compiler) = compiler(Some(folder.path().to_owned())) else { return };
    let first = good(&compiler);
    let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&file).unwrap();
    let flipped = {
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    for damaged in [&whole[..whole.len() / 2], &whole[..10], &[], &flipped] {
        fs::write(&file, damaged).unwrap();
        let again = good(&compiler);
        assert!(!again.cached && again.cubin == first.cubin);
        assert_eq!(fs::read(&file).unwrap(), whole, "the entry is written anew");
        assert!(good(&compiler).cached);
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let Some(compiler) = compiler(Some(file.join("kernels"))) else { return };
    assert!(!good(&compiler).cached && !good(&compiler).cached);
}

#[test]
fn a_device_without_kernels_says_why() {
    assert!(kernels::cuda::ready(Device::Cpu).unwrap_err().contains("on CUDA devices"));
    if let Err(reason) = kernels::cuda::ready(Device::Cuda(0)) {
        let known = ["no CUDA driver", "cuInit", "no NVRTC", "sm_"];
        assert!(known.iter().any(|part| reason.contains(part)), "{reason}");
    }
}
