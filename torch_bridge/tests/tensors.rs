//! Bytes and slices: exact, and refused when they would lie.

#![expect(clippy::float_cmp, reason = "what is copied must be equal")]

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::{Inference, NoGrad};
use torch_bridge::{autograd, tensors};

#[test]
fn bytes_round_trip_for_every_kind() {
    let kinds = [
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
        Kind::Half,
        Kind::Float,
        Kind::Double,
        Kind::Bool,
        Kind::BFloat16,
        Kind::ComplexFloat,
        Kind::Float8e4m3fn,
        Kind::Float8e5m2,
    ];
    for kind in kinds {
        let bytes: Vec<u8> = (0..6 * kind.elt_size_in_bytes()).map(|i| u8::from(i % 3 == 0)).collect();
        let tensor = tensors::from_bytes(&bytes, &[2, 3], kind).unwrap();
        assert_eq!((tensor.kind(), tensor.size()), (kind, vec![2, 3]));
        assert_eq!(tensors::to_bytes(&tensor).unwrap(), bytes, "{kind:?}");
    }
}

#[test]
fn bfloat16_is_bfloat16() {
    let values = [1.0f32, -2.5, 0.1, 1e30, f32::INFINITY];
    let tensor = tensors::from_f32_as(&values, &[5], Kind::BFloat16).unwrap();
    assert_eq!(tensor.kind(), Kind::BFloat16);
    let rounded: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
    let expected: Vec<u8> = rounded.iter().flat_map(|value| value.to_ne_bytes()).collect();
    assert_eq!(tensors::to_bytes(&tensor).unwrap(), expected);
    tensors::with_slice::<bf16, _>(&tensor, |slice| assert_eq!(slice, rounded)).unwrap();
    assert!(tensors::slice::<half::f16>(&tensor).is_err());
    assert_eq!(tensors::from_bytes(&expected, &[5], Kind::BFloat16).unwrap(), tensor);
}

#[test]
fn bytes_are_in_row_major_order_whatever_the_strides() {
    let tensor = Tensor::from_slice(&[1i64, 2, 3, 4]).reshape([2, 2]);
    let transposed: Vec<u8> = [1i64, 3, 2, 4].iter().flat_map(|x| x.to_ne_bytes()).collect();
    assert_eq!(tensors::to_bytes(&tensor.tr()).unwrap(), transposed);
    assert_eq!(tensors::to_bytes(&tensor.narrow(0, 1, 1).set_requires_grad(false)).unwrap().len(), 16);
    assert!(tensors::to_bytes(&Tensor::zeros([0, 3], tch::kind::FLOAT_CPU)).unwrap().is_empty());
    assert!(tensors::to_bytes(&Tensor::new()).is_err());
}

#[test]
fn a_wrong_number_of_bytes_is_refused() {
    for (bytes, shape) in [(7, &[2i64][..]), (9, &[2]), (8, &[-2]), (8, &[i64::MAX, 16]), (0, &[1])] {
        let error = tensors::from_bytes(&vec![0; bytes], shape, Kind::Float).unwrap_err().to_string();
        assert!(error.contains("bytes"), "{error}");
    }
    assert_eq!(tensors::from_bytes(&[0; 4], &[], Kind::Float).unwrap().dim(), 0);
    assert_eq!(tensors::from_bytes(&[], &[0, 5], Kind::Float).unwrap().size(), [0, 5]);
    assert!(tensors::from_f32_as(&[1.0], &[2], Kind::Half).is_err());
}

#[test]
fn slices_read_and_write() {
    let mut tensor = Tensor::from_slice(&[1.0f64, 2.0, 3.0, 4.0]).reshape([2, 2]);
    assert_eq!(*tensors::slice::<f64>(&tensor).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    tensors::with_slice_mut::<f64, _>(&mut tensor, |slice| slice[2] = 30.0).unwrap();
    assert_eq!(tensor.double_value(&[1, 0]), 30.0);
    // A part that is contiguous in itself starts where it starts.
    assert_eq!(*tensors::slice::<f64>(&tensor.get(1)).unwrap(), [30.0, 4.0]);
    assert!(tensors::slice::<f64>(&Tensor::zeros([0], tch::kind::DOUBLE_CPU)).unwrap().is_empty());
    assert_eq!(*tensors::slice::<i64>(&Tensor::from(5i64)).unwrap(), [5]);
    assert_eq!(*tensors::slice::<bool>(&Tensor::from_slice(&[true, false])).unwrap(), [true, false]);

    // Elements may go to other threads while the slice is held here.
    let mut tensor = Tensor::zeros([1000], tch::kind::FLOAT_CPU);
    let mut slice = tensors::slice_mut::<f32>(&mut tensor).unwrap();
    std::thread::scope(|scope| {
        for (i, part) in slice.chunks_mut(250).enumerate() {
            scope.spawn(move || part.fill(i as f32));
        }
    });
    drop(slice);
    assert_eq!(tensor.sum(None).double_value(&[]), 1500.0);
}

#[test]
fn slices_refuse_what_they_cannot_show() {
    let tensor = Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
    let message = |tensor: &Tensor| tensors::slice::<f32>(tensor).unwrap_err().to_string();
    let kind = message(&tensor.to_kind(Kind::Double));
    assert!(kind.contains("expected elements of kind Float, got Double"), "{kind}");
    let strided = message(&tensor.tr());
    assert!(strided.contains("contiguous") && strided.contains("strides [1, 3]"), "{strided}");
    assert!(message(&tensor.narrow(1, 0, 2)).contains("contiguous"));
    assert!(message(&Tensor::new()).contains("undefined"));
    assert!(message(&tensor.to_sparse_sparse_dim(2)).contains("sparse"));

    let odd = Tensor::from_slice(&[0u8, 1, 2]).view_dtype(Kind::Bool);
    assert!(tensors::slice::<bool>(&odd).unwrap_err().to_string().contains("values of Bool"));

    // Memory that starts off the grid of its elements.
    let bytes = Tensor::zeros([17], (Kind::Uint8, Device::Cpu));
    if let Ok(off) = bytes.narrow(0, 1, 16).f_view_dtype(Kind::Float) {
        assert!(message(&off).contains("aligned"));
    }
}

#[test]
fn overlapping_slices_are_refused() {
    let mut tensor = Tensor::zeros([4], tch::kind::FLOAT_CPU);
    let (mut alias, other) = (tensor.shallow_clone(), tensor.narrow(0, 0, 2));
    let mut rest = tensor.narrow(0, 2, 2);
    {
        let read = tensors::slice::<f32>(&tensor).unwrap();
        assert_eq!(read.len(), tensors::slice::<f32>(&alias).unwrap().len(), "readers share");
        let refused = tensors::slice_mut::<f32>(&mut alias).unwrap_err().to_string();
        assert!(refused.contains("overlaps"), "{refused}");
    }
    {
        let first = tensors::slice::<f32>(&other).unwrap();
        let second = tensors::slice_mut::<f32>(&mut rest).unwrap();
        assert_eq!(first.len() + second.len(), 4, "halves do not overlap");
        assert!(tensors::slice_mut::<f32>(&mut alias).is_err());
    }
    let write = tensors::slice_mut::<f32>(&mut tensor).unwrap();
    assert!(tensors::slice::<f32>(&other).is_err() && tensors::slice_mut::<f32>(&mut alias).is_err());
    drop(write);
    assert!(tensors::slice_mut::<f32>(&mut alias).is_ok());
}

#[test]
fn autograd_hears_of_writes() {
    let mut leaf = Tensor::ones([3], tch::kind::DOUBLE_CPU).set_requires_grad(true);
    assert!(tensors::slice_mut::<f64>(&mut leaf).is_err());
    {
        let _off = NoGrad::new();
        tensors::slice_mut::<f64>(&mut leaf).unwrap()[0] = 2.0;
    }
    assert_eq!(leaf.double_value(&[0]), 2.0);

    let hidden = &leaf * 1.0;
    let loss = hidden.square().sum(None);
    tensors::slice_mut::<f64>(&mut hidden.detach()).unwrap()[0] = 5.0;
    let error = autograd::backward(&[loss], None, false).unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");

    let mut made = {
        let _inference = Inference::new();
        let mut made = Tensor::ones([2], tch::kind::DOUBLE_CPU);
        assert!(tensors::slice_mut::<f64>(&mut made).is_ok());
        made
    };
    assert!(tensors::slice_mut::<f64>(&mut made).is_err());
    assert!(tensors::slice::<f64>(&made).is_ok());
}

#[test]
fn checked_pointers() {
    let tensor = Tensor::zeros([2, 2], tch::kind::FLOAT_CPU);
    let pointer = tensors::data_ptr_checked(&tensor, Device::Cpu, Kind::Float).unwrap();
    assert_eq!(pointer, tensor.data_ptr());
    assert!(tensors::data_ptr_checked(&tensor, Device::Cuda(0), Kind::Float).is_err());
    assert!(tensors::data_ptr_checked(&tensor, Device::Cpu, Kind::Half).is_err());
    let column = tensor.narrow(1, 1, 1);
    assert!(tensors::data_ptr_checked(&column, Device::Cpu, Kind::Float).is_err());

    let strided = |tensor: &Tensor, device, kind| tensors::strided_ptr_checked(tensor, device, kind);
    assert_eq!(strided(&column, Device::Cpu, Kind::Float).unwrap(), column.data_ptr());
    assert_eq!(column.data_ptr().addr(), pointer.addr() + 4, "the view's first element, not the memory's");
    assert!(strided(&column, Device::Cuda(0), Kind::Float).is_err());
    assert!(strided(&column, Device::Cpu, Kind::Half).is_err());
    assert!(strided(&tensor.to_sparse_sparse_dim(2), Device::Cpu, Kind::Float).is_err());
}
