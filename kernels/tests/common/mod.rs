//! What the tests of all operations share: reproducible noise, distances, and an operation's outputs with its
//! gradients.

#![allow(dead_code, clippy::unwrap_used, clippy::struct_excessive_bools)] // each test binary uses a part

pub mod causal_conv1d;
pub mod gpu;
pub mod selective_scan;
pub mod slstm;

use tch::{Device, Kind, Tensor};
use torch_bridge::autograd::{GradOptions, grad};

/// Reproducible pseudo-random numbers (SplitMix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.bits() % limit as u64).unwrap()
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// f64 values that f32 can hold, uniform in -1.7..1.7 (so of variance about 1).
    pub fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>();
        let values: Vec<f32> =
            (0..count).map(|_| (self.bits() >> 40) as f32 / 16_777_216.0 * 3.4 - 1.7).collect();
        Tensor::from_slice(&values).reshape(shape).to_kind(Kind::Double)
    }

    /// Bools, true once in `one_in`.
    pub fn mask(&mut self, shape: &[i64], one_in: usize) -> Tensor {
        let count = shape.iter().product::<i64>();
        let values: Vec<bool> = (0..count).map(|_| self.chance(one_in)).collect();
        Tensor::from_slice(&values).reshape(shape)
    }
}

/// The same values with other strides.
pub fn strided(x: &Tensor) -> Tensor {
    let last = x.dim() as i64 - 1;
    x.transpose(0, last).contiguous().transpose(0, last)
}

/// An operation's outputs and the gradients of a random linear function of them, in f64.
pub struct Outcome {
    pub names: Vec<String>,
    pub values: Vec<Tensor>,
}

/// An operation of which everything but the differentiable inputs is fixed.
pub type Operation<'a> = &'a dyn Fn(&[Tensor]) -> torch_bridge::Result<(Tensor, Tensor)>;

/// Runs `operation` on `inputs` (as leaves of `kind`) and differentiates.
pub fn outcome(inputs: &[(&'static str, Tensor)], kind: Kind, operation: Operation<'_>) -> Outcome {
    let inputs: Vec<_> = inputs.iter().map(|(name, x)| (*name, x.to_kind(kind))).collect();
    differentiated(&inputs, kind, operation)
}

/// As [`outcome`], of inputs whose kinds and device stay; the random function's weights are rounded to `weights`.
pub fn differentiated(inputs: &[(&'static str, Tensor)], weights: Kind, operation: Operation<'_>) -> Outcome {
    let leaves: Vec<Tensor> = inputs.iter().map(|(_, x)| x.detach().set_requires_grad(true)).collect();
    let (y, state) = operation(&leaves).unwrap();
    let mut noise = Noise(99);
    let mut weight =
        |x: &Tensor| noise.tensor(&x.size()).to_kind(weights).to_kind(x.kind()).to_device(x.device());
    let weights = [&y, &state].map(|x| Some(weight(x)));
    let options = GradOptions { allow_unused: true, ..GradOptions::default() };
    let outputs = [y.shallow_clone(), state.shallow_clone()];
    let grads = grad(&outputs, Some(&weights), &leaves, options).unwrap();
    let mut names = vec!["y".to_owned(), "state".to_owned()];
    let mut values = vec![y, state];
    for (((name, _), leaf), grad) in inputs.iter().zip(&leaves).zip(grads) {
        names.push(format!("d{name}"));
        values.push(grad.unwrap_or_else(|| leaf.zeros_like()));
    }
    let plain = |x: &Tensor| x.detach().to_device(CPU).to_kind(Kind::Double);
    Outcome { names, values: values.iter().map(plain).collect() }
}

/// Gradients of the sum of the squares of the gradients of `outcome`, by input.
pub fn second_outcome(inputs: &[(&'static str, Tensor)], operation: Operation<'_>) -> Outcome {
    let leaves: Vec<Tensor> = inputs.iter().map(|(_, x)| x.detach().set_requires_grad(true)).collect();
    let (y, state) = operation(&leaves).unwrap();
    let mut noise = Noise(99);
    let weights = [&y, &state].map(|x| Some(noise.tensor(&x.size()).to_kind(x.kind()).to_device(x.device())));
    let options = GradOptions { create_graph: true, allow_unused: true, ..GradOptions::default() };
    let first = grad(&[y, state], Some(&weights), &leaves, options).unwrap();
    let squares: Tensor = first.iter().flatten().map(|x| x.square().sum(Kind::Double)).sum();
    let second = grad(&[squares], None, &leaves, options).unwrap();
    let plain = |x: Tensor| x.detach().to_device(CPU).to_kind(Kind::Double);
    let values = leaves.iter().zip(second).map(|(leaf, x)| plain(x.unwrap_or_else(|| leaf.zeros_like())));
    Outcome {
        names: inputs.iter().map(|(name, _)| format!("second d{name}")).collect(),
        values: values.collect(),
    }
}

/// `rms(x - y) / rms(y)`; the absolute rms where `y` is zero, 0 for empty tensors.
pub fn distance(x: &Tensor, y: &Tensor) -> f64 {
    assert_eq!(x.size(), y.size());
    if y.numel() == 0 {
        return 0.0;
    }
    let rms = |x: &Tensor| x.square().mean(Kind::Double).sqrt().double_value(&[]);
    let (off, size) = (rms(&(x - y)), rms(y));
    if size == 0.0 { off } else { off / size }
}

impl Outcome {
    /// Fails unless everything is within `tolerance` of `expected`.
    pub fn assert_near(&self, expected: &Self, tolerance: f64, what: &str) {
        for ((name, x), y) in self.names.iter().zip(&self.values).zip(&expected.values) {
            let distance = distance(x, y);
            assert!(distance <= tolerance, "{what}: {name} is off by {distance:e}");
        }
    }

    /// Fails unless everything is as near to `truth` as a single-precision `peer` is, give or take a factor.
    pub fn assert_as_near_as(&self, peer: &Self, truth: &Self, what: &str) {
        for (index, name) in self.names.iter().enumerate() {
            let ours = distance(&self.values[index], &truth.values[index]);
            let theirs = distance(&peer.values[index], &truth.values[index]);
            // A few sums that nearly cancel are right by luck: the ratio of two lucks is no measure.
            let factor = if self.values[index].numel() < 16 { 8.0 } else { 2.0 };
            let allowed = f64::max(1e-5, factor * theirs);
            assert!(ours <= allowed, "{what}: {name} is off by {ours:e}, the definition by {theirs:e}");
        }
    }

    pub fn assert_equal(&self, other: &Self, what: &str) {
        for ((name, x), y) in self.names.iter().zip(&self.values).zip(&other.values) {
            assert!(x.equal(y), "{what}: {name} differs");
        }
    }

    pub fn assert_finite(&self, what: &str) {
        for (name, x) in self.names.iter().zip(&self.values) {
            assert!(bool::try_from(x.isfinite().all()).unwrap(), "{what}: {name} is not finite");
        }
    }
}

/// Compares `outcome` of `operation` in f64 with central differences.
pub fn gradcheck(inputs: &[(&'static str, Tensor)], operation: Operation<'_>) {
    let analytic = outcome(inputs, Kind::Double, operation);
    let value = |inputs: &[Tensor]| {
        let (y, state) = operation(inputs).unwrap();
        let mut noise = Noise(99);
        [&y, &state]
            .map(|x| (x * noise.tensor(&x.size())).sum(Kind::Double).double_value(&[]))
            .iter()
            .sum::<f64>()
    };
    for (which, (name, x)) in inputs.iter().enumerate() {
        let numeric: Vec<f64> = (0..x.numel() as i64)
            .map(|element| {
                let step = 1e-5;
                let [up, down] = [step, -step].map(|step| {
                    let moved: Vec<Tensor> = inputs.iter().map(|(_, x)| x.contiguous().copy()).collect();
                    let _ = moved[which].view(-1).get(element).f_add_scalar_(step).unwrap();
                    value(&moved)
                });
                (up - down) / (2.0 * step)
            })
            .collect();
        let numeric = Tensor::from_slice(&numeric).reshape(x.size());
        let distance = distance(&analytic.values[2 + which], &numeric);
        assert!(distance < 1e-7, "gradient of {name} is off by {distance:e}");
    }
}

/// True at the given tokens of every row, `[batch, time]`.
pub fn at(batch: i64, time: i64, tokens: &[i64]) -> Tensor {
    let row: Vec<bool> = (0..time).map(|t| tokens.contains(&t)).collect();
    Tensor::from_slice(&row).reshape([1, time]).expand([batch, time], false).contiguous()
}

/// Runs `body` with so many threads.
pub fn with_threads<R>(threads: usize, body: impl FnOnce() -> R) -> R {
    let _guard = torch_bridge::guards::ThreadCount::new(threads).unwrap();
    body()
}

pub const CPU: Device = Device::Cpu;
