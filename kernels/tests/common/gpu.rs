//! The GPU of the tests that compare kernels with definitions.

use std::sync::Once;

use kernels::policy::{self, Policy};
use tch::{Cuda, Device};
use torch_bridge::cuda;

pub const GPU: Device = Device::Cuda(0);

/// Whether there is a GPU. Every test asks first: CUDA is opened before any torch call, and kernels are required, so
/// that a definition cannot take a kernel's place unseen.
pub fn there_is_a_gpu() -> bool {
    static ONCE: Once = Once::new();
    let status = cuda::open();
    if !status.opened || !Cuda::is_available() {
        println!("skipped: {}", status.reason.unwrap_or_else(|| "no GPU".to_owned()));
        return false;
    }
    ONCE.call_once(|| {
        policy::set(Policy::Require);
        kernels::cuda::ready(GPU).unwrap();
    });
    true
}
