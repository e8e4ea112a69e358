//! Devices, memory and process-wide settings on a machine without a GPU (and, where it can, with one).

use tch::{Device, Kind, Tensor};
use torch_bridge::device::{self, AttentionBackends, Determinism, MatmulPrecision};
use torch_bridge::{cuda, memory};

#[test]
fn opening_cuda_is_never_fatal_and_happens_once() {
    let first = cuda::open();
    assert_eq!((first.clone(), first.clone()), (cuda::open(), cuda::status()));
    assert_eq!(first.opened, first.reason.is_none(), "{first:?}");
    if first.opened {
        assert!(first.path.is_some_and(|path| path.ends_with("libtorch_cuda.so")));
    }
    assert_eq!(Tensor::from_slice(&[1i64, 2]).sum(Kind::Int64).int64_value(&[]), 3);
}

#[test]
fn versions_and_capability() {
    assert!(device::libtorch_version().starts_with("2.11"));
    assert!(!device::cpu_capability().is_empty());
}

#[test]
fn determinism_precision_and_attention_are_settable() {
    assert_eq!(device::determinism(), Determinism::Off);
    device::deterministic_algorithms(true, true).unwrap();
    assert_eq!(device::determinism(), Determinism::Warned);
    device::deterministic_algorithms(true, false).unwrap();
    assert_eq!(device::determinism(), Determinism::Required);
    device::deterministic_algorithms(false, false).unwrap();
    device::set_backend_determinism(true, true, false).unwrap();
    device::set_cudnn_tf32(false).unwrap();

    assert_eq!(device::matmul_precision().unwrap(), MatmulPrecision::Highest);
    for precision in [MatmulPrecision::Medium, MatmulPrecision::High, MatmulPrecision::Highest] {
        device::set_matmul_precision(precision).unwrap();
        assert_eq!(device::matmul_precision().unwrap(), precision);
    }

    let before = device::attention_backends();
    let only_math = AttentionBackends { flash: false, memory_efficient: false, math: true, cudnn: false };
    device::set_attention_backends(only_math).unwrap();
    assert_eq!(device::attention_backends(), only_math);
    device::set_attention_backends(before).unwrap();
}

#[test]
fn threads() {
    let before = device::threads().unwrap();
    device::set_threads(1, before.inter).unwrap();
    assert_eq!(device::threads().unwrap().intra, 1);
    assert!(device::set_threads(0, 1).is_err() && device::set_threads(1, 0).is_err());
    device::set_threads(before.intra, before.inter).unwrap();
}

#[test]
fn the_memory_of_the_process_is_seen() {
    let before = memory::stats(Device::Cpu).unwrap();
    let block = Tensor::ones([64 << 20], (Kind::Uint8, Device::Cpu));
    let during = memory::stats(Device::Cpu).unwrap();
    assert!(during.allocated >= before.allocated + (48 << 20), "{before:?} {during:?}");
    assert!(during.allocated_peak >= during.allocated);
    drop(block);
    if memory::reset_peak(Device::Cpu).is_ok() {
        let after = memory::stats(Device::Cpu).unwrap();
        assert!(after.allocated_peak < during.allocated_peak, "{during:?} {after:?}");
    }
    assert!(memory::empty_cache(Device::Cpu).is_ok() && device::synchronize(Device::Cpu).is_ok());
}

#[test]
fn a_device_that_is_not_there_is_an_error_that_says_so() {
    assert!(device::current_stream(Device::Cpu).unwrap_err().to_string().contains("not an accelerator"));
    assert!(memory::capacity(Device::Cpu).is_err());
    // With or without GPUs, there is no hundredth.
    let missing = Device::Cuda(100);
    let errors = [
        device::current_stream(missing).map(drop),
        device::synchronize(missing),
        memory::stats(missing).map(drop),
        memory::capacity(missing).map(drop),
        memory::reset_peak(missing),
    ];
    for outcome in errors {
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("cuda:100") && !message.contains("Exception raised"), "{message}");
    }
}
