//! Functions written in Rust, and gradients of graphs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Kind, Tensor, kind::DOUBLE_CPU};
use torch_bridge::autograd::{self, Function, GradOptions, Saved};
use torch_bridge::guards::{EnableGrad, NoGrad};
use torch_bridge::{Error, Result};

/// `sum_i inputs_i^2` element by element, with broadcasting, over any number of inputs.
struct SumOfSquares;

impl Function for SumOfSquares {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        assert!(!torch_bridge::guards::is_grad_enabled());
        for input in inputs {
            saved.save(input);
        }
        let mut sum = inputs[0].f_square()?;
        for input in &inputs[1..] {
            sum = sum.f_add(&input.f_square()?)?;
        }
        Ok(vec![sum])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &grads[0] else { return Ok(saved.iter().map(|_| None).collect()) };
        // Not summed down to the shape of a broadcast input: autograd does that.
        saved.iter().map(|input| Ok(Some(grad.f_mul(input)?.f_mul_scalar(2.0)?))).collect()
    }
}

fn leaf(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, DOUBLE_CPU).set_requires_grad(true)
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.allclose(b, 1e-12, 1e-12, false)
}

fn gradients(output: &Tensor, weight: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    let loss = (output * weight).sum(None);
    let grads = autograd::grad(&[loss], None, inputs, GradOptions::default()).expect("gradients");
    grads.into_iter().flatten().collect()
}

#[test]
fn gradients_equal_the_native_ones_with_broadcasting() {
    let (a, b, c) = (leaf(&[5, 3]), leaf(&[3]), leaf(&[2, 1, 3]));
    let weight = Tensor::randn([2, 5, 3], DOUBLE_CPU);
    let ours = autograd::apply("sum of squares", SumOfSquares, &[&a, &b, &c]).unwrap().remove(0);
    let native = &a * &a + &b * &b + &c * &c;
    assert!(close(&ours, &native) && ours.requires_grad());
    let (ours, native) =
        (gradients(&ours, &weight, &[&a, &b, &c]), gradients(&native, &weight, &[&a, &b, &c]));
    assert_eq!((ours.len(), native.len()), (3, 3));
    assert!(ours.iter().zip(&native).all(|(ours, native)| close(ours, native)));
}

#[test]
fn more_tensors_than_any_fixed_buffer() {
    let inputs: Vec<Tensor> = (0..300).map(|_| leaf(&[2])).collect();
    let borrowed: Vec<&Tensor> = inputs.iter().collect();
    let output = autograd::apply("many", SumOfSquares, &borrowed).unwrap().remove(0);
    let grads = autograd::grad(&[output.sum(None)], None, &inputs, GradOptions::default()).unwrap();
    assert!(grads.iter().zip(&inputs).all(|(grad, input)| close(grad.as_ref().unwrap(), &(input * 2.0))));
}

#[test]
fn second_derivatives() {
    let x = leaf(&[4]);
    let y = autograd::apply("cube", Cube, &[&x]).unwrap().remove(0);
    let options = GradOptions { create_graph: true, ..GradOptions::default() };
    let first = autograd::grad(&[y.sum(None)], None, &[&x], options).unwrap().remove(0).unwrap();
    assert!(close(&first, &(&x * &x * 3.0)));
    let second =
        autograd::grad(&[first.sum(None)], None, &[&x], GradOptions::default()).unwrap().remove(0).unwrap();
    assert!(close(&second, &(&x * 6.0)));
}

struct Cube;

impl Function for Cube {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        saved.save(&inputs[0]);
        Ok(vec![inputs[0].f_pow_tensor_scalar(3.0)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|grad| grad * &saved[0] * &saved[0] * 3.0)])
    }
}

/// Outputs `(2a, index of the largest a, a detached copy of b, a * b)`.
struct ManyOutputs {
    needs_grad: Vec<bool>,
    seen: Arc<AtomicUsize>,
}

impl Function for ManyOutputs {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.needs_grad = saved.needs_grads().to_vec();
        saved.save(&inputs[0]);
        saved.save(&inputs[1]);
        saved.mark_non_differentiable(2);
        Ok(vec![&inputs[0] * 2.0, inputs[0].argmax(0, false), inputs[1].copy(), &inputs[0] * &inputs[1]])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let present = grads.iter().enumerate().filter(|(_, grad)| grad.is_some()).map(|(i, _)| 1 << i).sum();
        self.seen.store(present, Ordering::SeqCst);
        let a = [grads[0].as_ref().map(|g| g * 2.0), grads[3].as_ref().map(|g| g * &saved[1])];
        let a = a.into_iter().flatten().reduce(|x, y| x + y);
        let b = self.needs_grad[1].then(|| grads[3].as_ref().map(|g| g * &saved[0])).flatten();
        Ok(vec![a, b])
    }
}

#[test]
fn several_outputs_some_without_gradients() {
    let seen = Arc::new(AtomicUsize::new(0));
    let function = || ManyOutputs { needs_grad: Vec::new(), seen: seen.clone() };
    let (a, b) = (leaf(&[3]), leaf(&[3]));
    let outputs = autograd::apply("many outputs", function(), &[&a, &b]).unwrap();
    let requires: Vec<bool> = outputs.iter().map(Tensor::requires_grad).collect();
    assert_eq!(requires, [true, false, false, true]);
    assert_eq!(outputs[1].kind(), Kind::Int64);

    // Only the first output is used: no gradient arrives for the others, and none leaves for `b`.
    let options = GradOptions { allow_unused: true, retain_graph: true, ..GradOptions::default() };
    let grads = autograd::grad(&[outputs[0].sum(None)], None, &[&a, &b], options).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 0b0001);
    assert!(close(grads[0].as_ref().unwrap(), &a.full_like(2.0)) && grads[1].is_none());

    let grads = autograd::grad(&[outputs[3].sum(None)], None, &[&a, &b], options).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 0b1000);
    assert!(close(grads[0].as_ref().unwrap(), &b) && close(grads[1].as_ref().unwrap(), &a));

    // An input that needs no gradient gets none asked.
    let constant = Tensor::randn([3], DOUBLE_CPU);
    let outputs = autograd::apply("many outputs", function(), &[&a, &constant]).unwrap();
    autograd::backward(&[&outputs[3]], Some(&[Some(constant.ones_like())]), false).unwrap();
    assert!(close(&a.grad(), &constant) && !constant.grad().defined());
}

/// Fails where it is told to.
struct Faulty {
    fault: &'static str,
    _counted: Counted,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Function for Faulty {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        match self.fault {
            "forward error" => return Err(Error::other("the forward is out of sorts")),
            "forward panic" => panic!("the forward is {}", "out of its mind"),
            "forward tch panic" => drop(&inputs[0] + Tensor::zeros([7, 7, 7], DOUBLE_CPU)),
            "bad mark" => saved.mark_non_differentiable(5),
            _ => {}
        }
        saved.save(&inputs[0]);
        Ok(vec![&inputs[0] * 1.0])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        match self.fault {
            "backward error" => {
                let _ = saved[0].f_add(&Tensor::zeros([7, 7, 7], DOUBLE_CPU))?;
                unreachable!()
            }
            "backward panic" => panic!("the backward is out of its mind"),
            "too few" => Ok(vec![]),
            "wrong shape" => Ok(vec![Some(Tensor::zeros([9], DOUBLE_CPU))]),
            _ => Ok(vec![grads[0].as_ref().map(Tensor::shallow_clone)]),
        }
    }
}

#[test]
fn errors_and_panics_come_back_and_everything_drops_once() {
    let cases = [
        ("forward error", "faulty: forward: the forward is out of sorts"),
        ("forward panic", "faulty: forward: panic: the forward is out of its mind"),
        ("forward tch panic", "must match the size of tensor"),
        ("bad mark", "mark_non_differentiable: expected an index below 1, got 5"),
        ("backward error", "faulty: backward: The size of tensor"),
        ("backward panic", "faulty: backward: panic: the backward is out of its mind"),
        ("too few", "expected 1, one per input, got 0 gradients"),
        ("wrong shape", "invalid gradient at index"),
        ("none", ""),
    ];
    for (fault, expected) in cases {
        let dropped = Arc::new(AtomicUsize::new(0));
        let x = leaf(&[2, 2]);
        let function = Faulty { fault, _counted: Counted(dropped.clone()) };
        let outcome = autograd::apply("faulty", function, &[&x])
            .and_then(|outputs| autograd::backward(&[outputs[0].sum(None)], None, false));
        match outcome {
            Ok(()) => assert_eq!(fault, "none"),
            Err(error) => {
                let message = error.to_string();
                assert!(!expected.is_empty() && message.contains(expected), "{fault}: {message}");
                assert!(!message.contains("Exception raised") && !message.contains("frame #"), "{message}");
            }
        }
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "{fault}");
    }
}

#[test]
fn without_gradients_nothing_is_kept() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let x = leaf(&[2]);
    let function = || Faulty { fault: "none", _counted: Counted(dropped.clone()) };
    let _off = NoGrad::new();
    let output = autograd::apply("plain", function(), &[&x]).unwrap().remove(0);
    assert!(!output.requires_grad());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    let _on = EnableGrad::new();
    let output = autograd::apply("plain", function(), &[&x]).unwrap().remove(0);
    assert!(output.requires_grad());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    drop(output);
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
}

#[test]
fn the_graph_keeps_a_function_alive_and_a_freed_graph_says_so() {
    let x = leaf(&[3]);
    let loss = autograd::apply("cube", Cube, &[&x]).unwrap().remove(0).sum(None);
    let keep = GradOptions { retain_graph: true, ..GradOptions::default() };
    for options in [keep, GradOptions::default()] {
        assert!(autograd::grad(&[&loss], None, &[&x], options).is_ok());
    }
    let error = autograd::grad(&[&loss], None, &[&x], keep).unwrap_err().to_string();
    assert!(error.contains("backward through the graph a second time"), "{error}");
}

#[test]
fn a_saved_tensor_that_was_changed_in_place_is_found() {
    let x = leaf(&[3]);
    let base = &x * 1.0;
    let loss = autograd::apply("cube", Cube, &[&base]).unwrap().remove(0).sum(None);
    let _ = base.detach().fill_(3.0);
    let error = autograd::backward(&[&loss], None, false).unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
}

#[test]
fn an_input_may_be_returned_and_another_function_may_follow() {
    struct Identity;
    impl Function for Identity {
        fn forward(&mut self, _: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
            Ok(vec![inputs[0].shallow_clone()])
        }
        fn backward(&mut self, _: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
            // A function within a backward: nested engine calls and nested callbacks.
            let inner = Tensor::from(2.0f64).set_requires_grad(true);
            let _on = EnableGrad::new();
            let cube = autograd::apply("inner", Cube, &[&inner])?;
            let slope = autograd::grad(&cube, None, &[&inner], GradOptions::default())?.remove(0);
            Ok(vec![grads[0].as_ref().zip(slope).map(|(grad, slope)| grad * slope)])
        }
    }
    let x = leaf(&[3]);
    let same = autograd::apply("identity", Identity, &[&x]).unwrap().remove(0);
    let loss = autograd::apply("cube", Cube, &[&same]).unwrap().remove(0).sum(None);
    autograd::backward(&[loss], None, false).unwrap();
    assert!(close(&x.grad(), &(&x * &x * 36.0)));
}

#[test]
fn grad_takes_output_gradients_and_unused_inputs() {
    let (x, unused) = (leaf(&[3]), leaf(&[2]));
    let y = &x * &x;
    let weight = Tensor::randn([3], DOUBLE_CPU);
    let keep = GradOptions { retain_graph: true, ..GradOptions::default() };
    let grads = autograd::grad(&[&y], Some(&[Some(weight.shallow_clone())]), &[&x], keep).unwrap();
    assert!(close(grads[0].as_ref().unwrap(), &(&x * &weight * 2.0)));
    assert!(!x.grad().defined());

    let implicit = autograd::grad(&[&y], None, &[&x], keep).unwrap_err().to_string();
    assert!(implicit.contains("scalar outputs"), "{implicit}");
    let refused = autograd::grad(&[y.sum(None)], None, &[&x, &unused], keep).unwrap_err().to_string();
    assert!(refused.contains("appears to not have been used"), "{refused}");
    let allowed = GradOptions { allow_unused: true, ..keep };
    let grads = autograd::grad(&[y.sum(None)], None, &[&x, &unused], allowed).unwrap();
    assert!(grads[0].is_some() && grads[1].is_none());

    // Two outputs, one with a gradient of its own and one scalar without.
    let outputs = [y.shallow_clone(), x.sum(None)];
    let grads = autograd::grad(&outputs, Some(&[Some(weight.shallow_clone()), None]), &[&x], keep).unwrap();
    assert!(close(grads[0].as_ref().unwrap(), &(&x * &weight * 2.0 + 1.0)));

    autograd::backward(&[&y], Some(&[Some(weight.shallow_clone())]), true).unwrap();
    autograd::backward(&[&y], Some(&[Some(weight.shallow_clone())]), false).unwrap();
    assert!(close(&x.grad(), &(&x * &weight * 4.0)), "backward accumulates");
    assert!(autograd::backward(&[Tensor::zeros([1], DOUBLE_CPU)], None, false).is_err());
}
