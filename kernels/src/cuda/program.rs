//! The CUDA C++ sources of the crate, each registered where it lies.

use std::fmt;

/// A `.cu` file with all that its machine code depends on besides the architecture.
#[derive(Debug)]
pub struct Program {
    /// Its path below `kernels/src`.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The headers that it includes, directly or not.
    pub headers: &'static [&'static Header],
    /// Options for NVRTC besides those that every program gets.
    pub options: &'static [&'static str],
    /// Whether it uses what only one architecture has (`wgmma`), and is compiled for `sm_90a` in place of `sm_90`.
    pub specific: bool,
    /// The macros it is compiled with: each variant that the tests compile. One that takes any number of states, say,
    /// lists a few.
    pub variants: &'static [&'static [Define]],
}

/// A file that programs include by its name.
#[derive(Debug)]
pub struct Header {
    /// As in `#include "name"`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A macro and its value: `-DNAME=VALUE`.
pub type Define = (&'static str, Value);

/// The value of a macro.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A number.
    Int(i64),
    /// Any text, such as a type's name.
    Text(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(to),
            Self::Text(text) => text.fmt(to),
        }
    }
}

/// What every program may include.
pub static COMMON: Header = Header { name: "common.cuh", text: include_str!("common.cuh") };

/// The matrix unit for bf16, and packing.
pub static HALF: Header = Header { name: "half.cuh", text: include_str!("half.cuh") };

static ONLY_COMMON: [&Header; 1] = [&COMMON];

/// A program that [`program!`](crate::cuda::program) has declared.
pub struct Registered(pub &'static Program);

inventory::collect!(Registered);

/// Every program of this binary, by path.
pub fn programs() -> Vec<&'static Program> {
    let mut programs: Vec<_> =
        inventory::iter::<Registered>.into_iter().map(|registered| registered.0).collect();
    programs.sort_by_key(|program| program.path);
    programs
}

/// Declares a `.cu` file, given by its path below `kernels/src`, as a static [`Program`] and registers it.
macro_rules! program {
    ($name:ident = $path:literal $(, $field:ident: $value:expr)* $(,)?) => {
        static $name: $crate::cuda::Program = $crate::cuda::Program {
            $($field: $value,)*
            ..$crate::cuda::Program::new($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/", $path)))
        };
        inventory::submit! { $crate::cuda::Registered(&$name) }
    };
}
pub(crate) use program;

impl Program {
    /// A program that includes the common header at most and is compiled in one way.
    pub const fn new(path: &'static str, text: &'static str) -> Self {
        Self { path, text, headers: &ONLY_COMMON, options: &[], specific: false, variants: &[&[]] }
    }
}
