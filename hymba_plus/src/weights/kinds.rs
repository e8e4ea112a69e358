//! Element types: libtorch's and those of safetensors.

use safetensors::Dtype;
use tch::Kind;

/// libtorch types and their names in the format.
const KINDS: [(Kind, Dtype); 12] = [
    (Kind::Double, Dtype::F64),
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Float8e4m3fn, Dtype::F8_E4M3),
    (Kind::Float8e5m2, Dtype::F8_E5M2),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

/// Types of weights, and what they are called in a `config.json`.
const FLOATS: [(Kind, &str); 4] = [
    (Kind::Float, "float32"),
    (Kind::BFloat16, "bfloat16"),
    (Kind::Half, "float16"),
    (Kind::Double, "float64"),
];

/// A libtorch type as safetensors calls it, if it has it.
pub fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(known, _)| *known == kind).map(|(_, dtype)| *dtype)
}

/// A type of safetensors as libtorch calls it, if it has it.
pub fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(_, known)| *known == dtype).map(|(kind, _)| *kind)
}

/// The type of weights that is called so: `float32`, `bfloat16`, `float16` or `float64`.
pub fn parse_kind(name: &str) -> Option<Kind> {
    FLOATS.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
}

/// The name of a type of weights; none when weights cannot be of it.
pub(super) fn float_name(kind: Kind) -> Option<&'static str> {
    FLOATS.iter().find(|(known, _)| *known == kind).map(|(_, name)| *name)
}
