//! The least that an operator has to move and to compute, from its name and the shapes of its inputs.

use serde_json::Value;

/// Bytes and floating-point operations, where they can be told.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    /// Each input read once, the output written once.
    pub(super) bytes: Option<f64>,
    pub(super) flops: Option<f64>,
}

/// How a kernel of ours is named in a trace: `hymba::kernel/NAME?bytes=N`.
const OURS: &str = "hymba::kernel/";

/// Operators that look at a tensor in another way and touch no element.
const VIEWS: [&str; 20] = [
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "contiguous",
    "detach",
    "expand",
    "flatten",
    "narrow",
    "permute",
    "reshape",
    "resolve_conj",
    "resolve_neg",
    "select",
    "slice",
    "split",
    "t",
    "transpose",
    "unsqueeze",
    "view",
];

/// An operator's name as it is shown.
pub(super) fn name(event: &str) -> &str {
    let name = event.strip_prefix(OURS).map_or(event, |rest| rest.split('?').next().unwrap_or(rest));
    name.strip_prefix("aten::").unwrap_or(name)
}

/// What an operator has to do.
pub(super) fn of(event: &str, shapes: &[Value], types: &[String]) -> Work {
    if let Some(rest) = event.strip_prefix(OURS) {
        let bytes = rest.split("bytes=").nth(1).and_then(|number| number.parse().ok());
        return Work { bytes, flops: None };
    }
    if VIEWS.contains(&name(event)) || event.contains("Backward") {
        return Work::default();
    }
    let shapes: Vec<Option<Vec<f64>>> = shapes.iter().map(shape).collect();
    let tensors: Vec<(&[f64], f64)> = shapes
        .iter()
        .zip(types)
        .filter_map(|(shape, kind)| Some((shape.as_deref()?, element(kind)?)))
        .collect();
    if let Some(work) = product(name(event), &tensors) {
        return work;
    }
    if tensors.is_empty() {
        return Work::default();
    }
    let count = |shape: &[f64]| shape.iter().product::<f64>();
    let inputs: f64 = tensors.iter().map(|(shape, width)| count(shape) * width).sum();
    // What is made is as large as the largest input, unless it is written over one.
    let output = tensors.iter().map(|(shape, width)| count(shape) * width).fold(0.0, f64::max);
    let in_place = event.ends_with('_');
    Work { bytes: Some(if in_place { inputs } else { inputs + output }), flops: None }
}

/// The shape of a tensor; scalars, lists of tensors and missing ones have none.
fn shape(value: &Value) -> Option<Vec<f64>> {
    let sizes = value.as_array()?;
    sizes.iter().map(Value::as_f64).collect::<Option<Vec<_>>>().filter(|sizes| !sizes.is_empty())
}

/// Bytes of an element, by the type's name in C++.
fn element(kind: &str) -> Option<f64> {
    Some(match kind {
        "double" | "long int" | "long" => 8.0,
        "float" | "int" => 4.0,
        "c10::BFloat16" | "c10::Half" => 2.0,
        "bool" | "signed char" | "unsigned char" => 1.0,
        _ => return None,
    })
}

/// A product of matrices.
fn product(name: &str, tensors: &[(&[f64], f64)]) -> Option<Work> {
    let matrices = match name {
        "mm" | "bmm" => tensors.get(..2)?,
        "addmm" | "baddbmm" => tensors.get(1..3)?,
        _ => return None,
    };
    let [(a, width), (b, _)] = matrices else { return None };
    let (rows, inner) = (a.get(a.len().checked_sub(2)?)?, a.last()?);
    let columns = b.last()?;
    let batch: f64 = a[..a.len() - 2].iter().product();
    Some(Work {
        bytes: Some(batch * width * (rows * inner + inner * columns + rows * columns)),
        flops: Some(2.0 * batch * rows * inner * columns),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(name: &str, shapes: &Value, types: &[&str]) -> Work {
        let types: Vec<String> = types.iter().map(|&kind| kind.to_owned()).collect();
        of(name, shapes.as_array().unwrap(), &types)
    }

    #[test]
    fn products_elements_and_our_kernels() {
        let product = work("aten::bmm", &json!([[3, 4, 8], [3, 8, 2]]), &["c10::BFloat16"; 2]);
        assert_eq!(product.flops, Some(3.0 * 2.0 * 4.0 * 8.0 * 2.0));
        assert_eq!(product.bytes, Some(3.0 * 2.0 * (32.0 + 16.0 + 8.0)));
        let sum = work("aten::add", &json!([[4, 8], [8], []]), &["float", "float", "Scalar"]);
        assert_eq!(sum, Work { bytes: Some(4.0 * (32.0 + 8.0 + 32.0)), flops: None });
        let written = work("aten::mul_", &json!([[10], [1]]), &["float", "float"]);
        assert_eq!(written.bytes, Some(44.0));
        assert_eq!(work("hymba::kernel/scan?bytes=77", &json!([]), &[]).bytes, Some(77.0));
        assert_eq!(name("hymba::kernel/scan?bytes=77"), "scan");
        assert_eq!(name("aten::addmm"), "addmm");
        assert_eq!(work("aten::stack", &json!([[[2, 3], [2, 3]], []]), &["TensorList", ""]), Work::default());
    }
}
