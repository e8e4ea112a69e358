//! The numbers by which libtorch and torch-sys know dtypes and devices; tch keeps its own tables private.

use tch::{Device, Kind};

/// `c10::ScalarType` of a kind.
pub(crate) fn of_kind(kind: Kind) -> i32 {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::ComplexHalf => 8,
        Kind::ComplexFloat => 9,
        Kind::ComplexDouble => 10,
        Kind::Bool => 11,
        Kind::QInt8 => 12,
        Kind::QUInt8 => 13,
        Kind::QInt32 => 14,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        Kind::Float8e5m2fnuz => 25,
        Kind::Float8e4m3fnuz => 26,
    }
}

/// The kind of a `c10::ScalarType`; `None` for those that tch has no name for (uint16, float4, ...).
pub(crate) fn to_kind(code: i32) -> Option<Kind> {
    Some(match code {
        0 => Kind::Uint8,
        1 => Kind::Int8,
        2 => Kind::Int16,
        3 => Kind::Int,
        4 => Kind::Int64,
        5 => Kind::Half,
        6 => Kind::Float,
        7 => Kind::Double,
        8 => Kind::ComplexHalf,
        9 => Kind::ComplexFloat,
        10 => Kind::ComplexDouble,
        11 => Kind::Bool,
        12 => Kind::QInt8,
        13 => Kind::QUInt8,
        14 => Kind::QInt32,
        15 => Kind::BFloat16,
        23 => Kind::Float8e5m2,
        24 => Kind::Float8e4m3fn,
        25 => Kind::Float8e5m2fnuz,
        26 => Kind::Float8e4m3fnuz,
        _ => return None,
    })
}

/// The device number of torch-sys: an index is that CUDA device.
pub(crate) fn of_device(device: Device) -> i32 {
    match device {
        Device::Cpu => -1,
        Device::Mps => -2,
        Device::Vulkan => -3,
        // An index beyond i32 is refused on the other side like every index without a device.
        Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
    }
}
