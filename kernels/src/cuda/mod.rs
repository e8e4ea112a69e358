//! CUDA kernels at run time: `.cu` files of this crate, compiled by NVRTC for the card that is there, kept on disk,
//! loaded into libtorch's own context and launched on its current stream. docs/kernels.md tells how to write one.
//!
//! Nothing of CUDA is linked. The driver and NVRTC are opened at the first kernel; where one is missing, the
//! [policy](crate::policy) decides between the definition and an error.

mod cache;
mod compiler;
mod driver;
pub(crate) mod launch;
mod library;
mod loaded;
mod nvrtc;
mod program;
pub(crate) mod sums;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tch::Device;
use torch_bridge::{Error, Result};

pub use self::compiler::{Compiled, Compiler, OLDEST};
pub(crate) use self::loaded::{Loaded, Unavailable};
pub(crate) use self::program::program;
pub use self::program::{COMMON, Define, HALF, Header, Program, Registered, Value, programs};
use crate::policy::{self, Policy};

/// Whether kernels can run on this device.
///
/// # Errors
/// What is missing.
pub fn ready(device: Device) -> Result<(), String> {
    loaded::architecture(device).map(|_| ()).map_err(|unavailable| unavailable.0.to_string())
}

/// What `operation` goes on with: the kernels it has found, or nothing if its definition is to run.
///
/// # Errors
/// There are no kernels and the policy requires them.
pub(crate) fn or_definition<T>(operation: &str, found: Result<T, Unavailable>) -> Result<Option<T>> {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Unavailable(reason) = match found {
        Ok(found) => return Ok(Some(found)),
        Err(unavailable) => unavailable,
    };
    if policy::get() == Policy::Require {
        return Err(Error::other(format!("{operation}: kernels are required and there is none: {reason}")));
    }
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(reason.to_string()) {
        eprintln!("warning: slow tensor operations replace CUDA kernels: {reason}");
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides_what_replaces_a_kernel() {
        let missing = || Err::<(), _>(Unavailable::from("no NVRTC"));
        assert_eq!(policy::get(), Policy::Auto);
        assert_eq!(or_definition("scan", Ok(3)).unwrap(), Some(3));
        assert_eq!(or_definition("scan", missing()).unwrap(), None);
        policy::set(Policy::Require);
        let refused = or_definition("scan", missing()).unwrap_err().to_string();
        policy::set(Policy::Reference);
        let fast = policy::fast();
        policy::set(Policy::Auto);
        assert_eq!(refused, "scan: kernels are required and there is none: no NVRTC");
        assert!(!fast && policy::fast());
    }
}
