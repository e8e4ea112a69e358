//! Nothing grows with the number of calls.
//!
//! Alone in its file: the resident set is the whole process's, so nothing else may run beside it.

use tch::{Device, Kind, Tensor, kind::DOUBLE_CPU};
use torch_bridge::autograd::{self, Function, GradOptions, Saved};
use torch_bridge::guards::{Autocast, Inference, NoGrad};
use torch_bridge::rng::{Fork, Generator};
use torch_bridge::{Error, Result, memory, ops, optim, tensors, values};

struct Square {
    fail: bool,
    _weight: Vec<u8>,
}

impl Function for Square {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        saved.save(&inputs[0]);
        let output = inputs[0].f_square()?;
        saved.save(&output);
        if self.fail { Err(Error::other("on purpose")) } else { Ok(vec![output]) }
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![grads[0].as_ref().map(|grad| grad * &saved[0] * 2.0)])
    }
}

/// 8 KiB of state and tensors of 8 KiB: one that leaks per round shows as 20 MiB.
fn round(x: &Tensor, list: &[Tensor]) -> Result<()> {
    let square = |fail| Square { fail, _weight: vec![1; 8 << 10] };
    let y = autograd::apply("square", square(false), &[x])?.remove(0);
    let options = GradOptions { create_graph: true, ..GradOptions::default() };
    let grad = autograd::grad(&[y.sum(None)], None, &[x], options)?.remove(0);
    let grad = grad.ok_or_else(|| Error::other("no gradient"))?;
    autograd::backward(&[grad.sum(None)], None, false)?;
    assert!(autograd::apply("square", square(true), &[x]).is_err());

    ops::call("add", "Tensor", &values![x, x])?;
    ops::call("sort", "", &values![x])?;
    ops::call("split_with_sizes", "", &values![x, [1000, 24]])?;
    assert!(ops::call("add", "Tensor", &values![x, &Tensor::zeros([7], DOUBLE_CPU)]).is_err());
    assert!(ops::call("add", "Tensor", &values![x, "no tensor"]).is_err());
    assert!(ops::call("no_such_operator", "", &values![x]).is_err());

    let _off = NoGrad::new();
    optim::foreach_zero_(list)?;
    let _ = optim::clip_grad_norm_(list, 1.0)?;
    let mut generator = Generator::new(Device::Cpu, 1)?;
    generator.normal_(&mut x.detach(), 0.0, 1.0)?;
    let _fork = Fork::new(Device::Cpu)?;
    {
        let _autocast = Autocast::new(Device::Cpu, Kind::BFloat16, true);
        let _inference = Inference::new();
        let square = x.reshape([32, 32]);
        let _ = square.matmul(&square);
    }
    let bytes = tensors::to_bytes(x)?;
    let mut copy = tensors::from_bytes(&bytes, &[1024], Kind::Double)?;
    tensors::with_slice_mut::<f64, _>(&mut copy, |slice| slice.fill(1.0))?;
    Ok(())
}

#[test]
fn thousands_of_calls_leave_the_resident_set_as_it_was() {
    let x = Tensor::randn([1024], DOUBLE_CPU).set_requires_grad(true);
    let list: Vec<Tensor> = (0..20).map(|_| Tensor::randn([256], DOUBLE_CPU)).collect();
    let resident = || memory::stats(Device::Cpu).unwrap().allocated as i64;
    for _ in 0..500 {
        round(&x, &list).unwrap();
    }
    let before = resident();
    for _ in 0..2500 {
        round(&x, &list).unwrap();
    }
    let growth = resident() - before;
    assert!(growth < 2 << 20, "grew by {} KiB", growth / 1024);
    println!("grew by {} KiB in 2500 rounds", growth / 1024);
}
