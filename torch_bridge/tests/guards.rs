//! Modes are restored, whatever happens within them.

use std::panic::catch_unwind;

use tch::{Device, Kind, Tensor, kind::FLOAT_CPU};
use torch_bridge::guards::{Autocast, EnableGrad, Inference, NoGrad, ThreadCount, is_grad_enabled};

#[test]
fn grad_modes_nest_and_survive_a_panic() {
    let records = || (Tensor::zeros([1], FLOAT_CPU).set_requires_grad(true) * 2.0).requires_grad();
    assert!(is_grad_enabled() && records());
    {
        let _off = NoGrad::new();
        assert!(!is_grad_enabled() && !records());
        {
            let _on = EnableGrad::new();
            assert!(is_grad_enabled() && records());
        }
        assert!(!is_grad_enabled());
    }
    assert!(is_grad_enabled());
    let panicked = catch_unwind(|| {
        let _off = NoGrad::new();
        let _inference = Inference::new();
        let _autocast = Autocast::new(Device::Cpu, Kind::BFloat16, true);
        panic!("within all modes");
    });
    assert!(panicked.is_err() && is_grad_enabled() && records());
    assert_eq!(Autocast::current(Device::Cpu), None);
}

#[test]
fn inference_tensors_stay_out_of_graphs() {
    let made = {
        let _inference = Inference::new();
        assert!(!is_grad_enabled());
        Tensor::ones([2], FLOAT_CPU)
    };
    assert!(is_grad_enabled() && made.is_inference());
    let weight = Tensor::ones([2], FLOAT_CPU).set_requires_grad(true);
    assert!(weight.f_mul(&made).is_err(), "torch refuses to save an inference tensor");
    assert!(!Tensor::ones([2], FLOAT_CPU).is_inference());
}

#[test]
fn autocast_lowers_products_and_restores() {
    let (a, b) = (Tensor::rand([4, 4], FLOAT_CPU), Tensor::rand([4, 4], FLOAT_CPU));
    let kind = || a.matmul(&b).kind();
    assert_eq!(kind(), Kind::Float);
    {
        let _outer = Autocast::new(Device::Cpu, Kind::BFloat16, true);
        assert_eq!((kind(), Autocast::current(Device::Cpu)), (Kind::BFloat16, Some(Kind::BFloat16)));
        {
            let _inner = Autocast::new(Device::Cpu, Kind::BFloat16, false);
            assert_eq!((kind(), Autocast::current(Device::Cpu)), (Kind::Float, None));
        }
        {
            let _inner = Autocast::new(Device::Cpu, Kind::Half, true);
            assert_eq!(kind(), Kind::Half);
        }
        assert_eq!(kind(), Kind::BFloat16, "the dtype is restored too");
        // The other device type and a kind that lowers nothing change nothing here.
        let _cuda = Autocast::new(Device::Cuda(3), Kind::Half, true);
        assert_eq!(Autocast::current(Device::Cuda(0)), Some(Kind::Half));
        assert_eq!(kind(), Kind::BFloat16);
        let _full = Autocast::new(Device::Cpu, Kind::Float, true);
        assert_eq!(kind(), Kind::Float);
    }
    assert_eq!((kind(), Autocast::current(Device::Cpu)), (Kind::Float, None));
    assert_eq!(Autocast::current(Device::Cuda(0)), None);
}

#[test]
fn the_autocast_cache_does_not_outlive_the_region() {
    let weight = Tensor::ones([2, 2], FLOAT_CPU).set_requires_grad(true);
    let x = Tensor::ones([2, 2], FLOAT_CPU);
    let product = || {
        let _autocast = Autocast::new(Device::Cpu, Kind::BFloat16, true);
        x.matmul(&weight).double_value(&[0, 0])
    };
    let before = product();
    {
        let _off = NoGrad::new();
        let _ = weight.shallow_clone().fill_(3.0);
    }
    assert!((product() / before - 3.0).abs() < 1e-6);
}

#[test]
fn autocast_leaves_a_device_without_it_alone() {
    let _vulkan = Autocast::new(Device::Vulkan, Kind::Half, true);
    assert_eq!(Autocast::current(Device::Vulkan), None);
}

#[test]
fn thread_counts_are_restored() {
    let before = torch_bridge::device::threads().unwrap();
    {
        let _one = ThreadCount::new(before.intra + 1).unwrap();
        assert_eq!(torch_bridge::device::threads().unwrap().intra, before.intra + 1);
    }
    assert_eq!(torch_bridge::device::threads().unwrap(), before);
    assert!(ThreadCount::new(0).is_err());
}
