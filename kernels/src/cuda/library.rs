//! Libraries that are opened at run time, as tables of their functions.

use std::error::Error as _;
use std::path::Path;

use libloading::Library;

/// Declares a struct of C functions and how to fill it from an open library.
///
/// `struct Name { field = "symbol": fn(arguments); }`; every function returns the library's own error code.
macro_rules! functions {
    (
        $(#[$attribute:meta])*
        struct $table:ident { $($field:ident = $symbol:literal: fn($($argument:ty),* $(,)?);)* }
    ) => {
        $(#[$attribute])*
        struct $table { $($field: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)* }

        impl $table {
            /// The functions of `library`, which must be the one they are declared after.
            fn of(library: &'static libloading::Library) -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the symbol's type is as the library's own header declares it.
                    $($field: *unsafe { library.get($symbol) }
                        .map_err(|error| $crate::cuda::library::reason(&error))?,)*
                })
            }
        }
    };
}
pub(super) use functions;

/// Opens a library for the life of the process.
pub(super) fn open(file: &Path) -> Result<&'static Library, String> {
    // SAFETY: only called with CUDA's own libraries, whose initialisers are meant to run on loading.
    let library = unsafe { Library::new(file) }.map_err(|error| reason(&error))?;
    // Its functions are kept in tables that live as long as the process.
    Ok(Box::leak(Box::new(library)))
}

/// The loader's own words, which name the file or the symbol that it could not find.
pub(super) fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
