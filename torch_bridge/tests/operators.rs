//! Operators by name: defaults, lists, conversions and what a wrong call says.

use tch::{Device, Kind, Tensor, kind::DOUBLE_CPU};
use torch_bridge::ops::{Operator, Value};
use torch_bridge::{Error, ops, values};

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-12, 1e-12, false)
}

#[test]
fn defaults_of_the_schema_are_filled_in() {
    let (x, y) = (Tensor::rand([3, 4], DOUBLE_CPU), Tensor::rand([3, 4], DOUBLE_CPU));
    // add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1)
    assert!(close(&ops::call_tensor("add", "Tensor", &values![&x, &y]).unwrap(), &(&x + &y)));
    assert!(close(&ops::call_tensor("aten::add", "Tensor", &values![&x, &y, 3]).unwrap(), &(&x + &y * 3.0)));
    // softplus(Tensor self, Scalar beta=1, Scalar threshold=20): tch cannot give beta.
    let beta = ops::call_tensor("softplus", "", &values![&x, 2.0]).unwrap();
    assert!(close(&beta, &((&x * 2.0).exp().log1p() / 2.0)));
}

#[test]
fn lists_go_in_and_come_out() {
    let parts: Vec<Tensor> = (1..=3i64).map(|i| Tensor::full([i, 2], i as f64, DOUBLE_CPU)).collect();
    let joined = ops::call_tensor("cat", "", &values![&parts]).unwrap();
    assert_eq!(joined.size(), [6, 2]);
    let split = ops::call("split_with_sizes", "", &values![&joined, [1, 2, 3]]).unwrap();
    let split = split.into_iter().next().unwrap().into_tensors().unwrap();
    assert!(split.iter().zip(&parts).all(|(a, b)| a == b));

    let norms = ops::call("_foreach_norm", "Scalar", &values![&parts, 1]).unwrap();
    let norms: Vec<f64> = norms
        .into_iter()
        .next()
        .unwrap()
        .into_tensors()
        .unwrap()
        .iter()
        .map(|n| n.double_value(&[]))
        .collect();
    assert_eq!(norms, [2.0, 8.0, 18.0]);

    // index.Tensor(Tensor self, Tensor?[] indices): a list with a hole.
    let columns = Value::OptionalTensorList(vec![None, Some(Tensor::from_slice(&[1i64]))]);
    let picked = ops::call_tensor("index", "Tensor", &[Value::from(&joined), columns]).unwrap();
    assert_eq!(picked, joined.narrow(1, 1, 1));
}

#[test]
fn several_results_of_several_types() {
    let x = Tensor::from_slice(&[3.0, 1.0, 2.0]);
    let results = ops::call("sort", "", &values![&x, -1, true]).unwrap();
    let [values, indices]: [Value; 2] = results.try_into().unwrap();
    assert_eq!(values.into_tensor().unwrap(), Tensor::from_slice(&[3.0, 2.0, 1.0]));
    assert_eq!(indices.into_tensor().unwrap(), Tensor::from_slice(&[0i64, 2, 1]));

    let scalar = |x: &Tensor| ops::call("_local_scalar_dense", "", &values![x]).unwrap().pop().unwrap();
    assert!((scalar(&x.sum(None)).into_double().unwrap() - 6.0).abs() < 1e-12);
    assert_eq!(scalar(&Tensor::from(7i64)).into_int().unwrap(), 7);
    assert!(
        ops::call("is_nonzero", "", &values![&Tensor::from(1i64)])
            .unwrap()
            .pop()
            .unwrap()
            .into_bool()
            .unwrap()
    );
}

#[test]
fn undefined_results_are_none() {
    let x = Tensor::rand([2, 4], DOUBLE_CPU);
    let [_, mean, rstd]: [Value; 3] =
        ops::call("native_layer_norm", "", &values![&x, [4], (), (), 1e-5]).unwrap().try_into().unwrap();
    let (mean, rstd) = (mean.into_tensor().unwrap(), rstd.into_tensor().unwrap());
    let mask = Value::BoolList(vec![true, false, false]);
    let arguments: Vec<Value> =
        values![&x, &x, [4], &mean, &rstd, (), ()].into_iter().chain([mask]).collect();
    let [grad, weight, bias]: [Value; 3] =
        ops::call("native_layer_norm_backward", "", &arguments).unwrap().try_into().unwrap();
    assert!(grad.into_optional_tensor().unwrap().is_some());
    assert!(weight.into_optional_tensor().unwrap().is_none());
    assert!(bias.into_optional_tensor().unwrap().is_none());
}

#[test]
fn dtypes_devices_and_strings() {
    let zeros = ops::call_tensor("zeros", "", &values![[2, 2], Kind::BFloat16, (), Device::Cpu]).unwrap();
    assert_eq!(zeros.kind(), Kind::BFloat16);
    let x = Tensor::from_slice(&[1.0f64, 2.0, 3.5]);
    let rounded = ops::call_tensor("div", "Tensor_mode", &values![&x, &(&x * 0.0 + 2.0), "floor"]).unwrap();
    assert_eq!(rounded, Tensor::from_slice(&[0.0f64, 1.0, 1.0]));
}

#[test]
fn in_place_operators_write_their_argument() {
    let x = Tensor::zeros([2], DOUBLE_CPU);
    ops::call("add_", "Scalar", &values![&x, 2.5]).unwrap();
    assert_eq!(x, Tensor::from_slice(&[2.5, 2.5]));
}

#[test]
fn gradients_flow_through_a_boxed_call() {
    let x = Tensor::rand([3], DOUBLE_CPU).set_requires_grad(true);
    ops::call_tensor("mul", "Tensor", &values![&x, &x]).unwrap().sum(None).backward();
    assert!(close(&x.grad(), &(&x * 2.0)));
}

#[test]
fn wrong_calls_say_what_is_wrong_and_show_the_schema() {
    let x = Tensor::rand([3], DOUBLE_CPU);
    let message = |name: &str, overload: &str, arguments: &[Value]| {
        ops::call(name, overload, arguments).unwrap_err().to_string()
    };

    let unknown = message("no_such_operator", "", &[]);
    assert!(unknown.starts_with("aten::no_such_operator: ") && unknown.contains("no operator"), "{unknown}");
    let overload = message("add", "NoSuchOverload", &values![&x, &x]);
    assert!(overload.contains("it has `") && overload.contains("`Tensor`"), "{overload}");

    let wrong_type = message("add", "Tensor", &values![&x, "two"]);
    assert!(wrong_type.contains("argument 1 `other` must be Tensor, got a string"), "{wrong_type}");
    assert!(wrong_type.contains("Tensor self, Tensor other"), "{wrong_type}");

    let lossy = message("cumsum", "", &values![&x, 0.5]);
    assert!(lossy.contains("`dim` must be int, got a float"), "{lossy}");
    let missing = message("cumsum", "", &values![&x]);
    assert!(missing.contains("argument 1 `dim` is missing"), "{missing}");
    let many = message("relu", "", &values![&x, 1]);
    assert!(many.contains("at most 1 arguments, got 2"), "{many}");
    assert!(message("relu", "", &[Value::None]).contains("got None"));

    let result = ops::call("relu", "", &values![&x]).unwrap().pop().unwrap().into_int().unwrap_err();
    assert!(matches!(result, Error::Mismatch { .. }), "{result}");
    assert!(ops::call_tensor("sort", "", &values![&x]).unwrap_err().to_string().contains("sort"));
}

#[test]
fn errors_carry_no_backtrace() {
    let (x, y) = (Tensor::rand([3], DOUBLE_CPU), Tensor::rand([4], DOUBLE_CPU));
    let ours = ops::call("add", "Tensor", &values![&x, &y]).unwrap_err().to_string();
    let theirs = Error::from(x.f_add(&y).unwrap_err()).to_string();
    for message in [ours, theirs] {
        assert!(
            message.contains("The size of tensor a (3) must match the size of tensor b (4)"),
            "{message}"
        );
        assert!(!message.contains("Exception raised") && !message.contains("frame #"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn operators_are_shared_between_threads() {
    let operator = Operator::find("mul", "Scalar").unwrap();
    assert_eq!(operator.to_string(), "aten::mul.Scalar");
    assert!(operator.schema().unwrap().starts_with("aten::mul.Scalar(Tensor self, Scalar other)"));
    let threads: Vec<_> = (0..4)
        .map(|i| {
            std::thread::spawn(move || {
                let found = Operator::find("mul", "Scalar").unwrap();
                let x = Tensor::from_slice(&[1.0f64]);
                (0..200).all(|_| {
                    let y = operator.call(&values![&x, i]).unwrap().pop().unwrap().into_tensor().unwrap();
                    let z = found.call(&values![&x, i]).unwrap().pop().unwrap().into_tensor().unwrap();
                    y == z && y == Tensor::from_slice(&[f64::from(i)])
                })
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn c10d_is_in_reach() {
    assert!(Operator::find("c10d::allreduce_", "").is_ok());
    assert!(Operator::find("_c10d_functional::all_reduce", "").is_ok());
}
