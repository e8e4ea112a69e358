//! From source to machine code: NVRTC with the cache on disk before it.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::cache::{Cache, Key};
use super::nvrtc::{self, Nvrtc, Unit};
use super::program::{Define, Program};

/// The oldest architecture that the kernels are written for (Ampere).
pub const OLDEST: i32 = 80;

/// NVRTC, and where its results are kept.
pub struct Compiler {
    nvrtc: &'static Nvrtc,
    cache: Cache,
    /// Says so on standard error before the first compilation: it is what makes a first run start slowly.
    announced: OnceLock<()>,
}

/// Machine code.
#[derive(Debug)]
pub struct Compiled {
    /// An ELF file for one architecture.
    pub cubin: Vec<u8>,
    /// The compiler's warnings; mostly empty.
    pub log: String,
    /// Whether it came from the cache.
    pub cached: bool,
}

impl Compiler {
    /// The compiler with the user's cache.
    ///
    /// # Errors
    /// What is missing.
    pub fn of_user() -> Result<Self, String> {
        Ok(Self { nvrtc: Nvrtc::get()?, cache: Cache::of_user(), announced: OnceLock::new() })
    }

    /// The compiler with a cache in this folder, or without one.
    ///
    /// # Errors
    /// What is missing.
    pub fn with_cache(folder: Option<PathBuf>) -> Result<Self, String> {
        Ok(Self { nvrtc: Nvrtc::get()?, cache: Cache::at(folder), announced: OnceLock::from(()) })
    }

    /// Which NVRTC it is: version and file.
    pub fn description(&self) -> String {
        let (major, minor) = self.nvrtc.version;
        format!("NVRTC {major}.{minor} ({})", self.nvrtc.path.display())
    }

    /// The architecture (90 for `sm_90`) to compile for when a card has this compute capability (90 for 9.0).
    ///
    /// # Errors
    /// The card is too old for the kernels, or too new for this NVRTC.
    pub fn architecture(&self, capability: i32) -> Result<i32, String> {
        if capability < OLDEST {
            return Err(format!("the kernels need sm_{OLDEST} or newer, and this card is sm_{capability}"));
        }
        let (major, minor) = self.nvrtc.version;
        self.nvrtc
            .architecture(capability)
            .ok_or_else(|| format!("NVRTC {major}.{minor} knows no card like sm_{capability}"))
    }

    /// The machine code of a program with these macros, from the cache or compiled.
    ///
    /// # Errors
    /// The compiler's messages, with file and line.
    pub fn compile(
        &self,
        program: &Program,
        defines: &[Define],
        architecture: i32,
    ) -> Result<Compiled, String> {
        let name = format!("kernels/src/{}", program.path);
        let options = options(program, defines, architecture);
        let headers: Vec<_> = program.headers.iter().map(|header| (header.name, header.text)).collect();
        let unit = Unit { name: &name, text: program.text, headers: &headers, options: &options };
        let key = self.key(&unit);
        if let Some((log, cubin)) = self.cache.get(&key).and_then(|entry| unpack(&entry)) {
            return Ok(Compiled { cubin, log, cached: true });
        }
        self.announced.get_or_init(|| {
            eprintln!("compiling CUDA kernels for sm_{architecture}; kept in {}", self.cache.place());
        });
        let nvrtc::Compiled { cubin, log } = self.nvrtc.compile(&unit)?;
        self.cache.put(&key, &pack(&log, &cubin));
        Ok(Compiled { cubin, log, cached: false })
    }

    /// All that the result depends on.
    fn key(&self, unit: &Unit<'_>) -> Key {
        let (major, minor) = self.nvrtc.version;
        let version = format!("NVRTC {major}.{minor}");
        let headers = unit.headers.iter().flat_map(|(name, text)| [*name, *text]);
        let options = unit.options.iter().map(String::as_str);
        Key::of([version.as_str(), unit.name, unit.text].into_iter().chain(headers).chain(options))
    }
}

/// An entry of the cache: the length of the log, the log, the machine code.
fn pack(log: &str, cubin: &[u8]) -> Vec<u8> {
    [&(log.len() as u64).to_le_bytes(), log.as_bytes(), cubin].concat()
}

fn unpack(entry: &[u8]) -> Option<(String, Vec<u8>)> {
    let (length, rest) = entry.split_first_chunk()?;
    let (log, cubin) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((String::from_utf8_lossy(log).into_owned(), cubin.to_vec()))
}

fn options(program: &Program, defines: &[Define], architecture: i32) -> Vec<String> {
    // What is specific to an architecture began with Hopper.
    let suffix = if program.specific && architecture >= 90 { "a" } else { "" };
    let mut options = vec![
        format!("--gpu-architecture=sm_{architecture}{suffix}"),
        "--std=c++17".to_owned(),
        // Profilers and compute-sanitizer name the line.
        "--generate-line-info".to_owned(),
        // A variable that is never used: one that another variant uses.
        "--diag-suppress=177".to_owned(),
    ];
    options.extend(program.options.iter().map(|option| (*option).to_owned()));
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}
