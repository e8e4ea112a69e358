//! Generators: what is drawn again is equal, what is drawn aside leaves no trace.
//!
//! All draws from the default generator are in one test: the tests of a file share it between threads.

use std::panic::catch_unwind;

use tch::{Device, Kind, Tensor, kind::DOUBLE_CPU};
use torch_bridge::rng::{self, Fork, Generator, Replay};

const CPU: Device = Device::Cpu;

fn draw() -> Tensor {
    Tensor::randn([16], DOUBLE_CPU)
}

#[test]
fn the_default_generator_replays_forks_and_ignores_others() {
    rng::manual_seed(CPU, 7).unwrap();
    let state = rng::get_state(CPU).unwrap();
    assert_eq!(state.kind(), Kind::Uint8);
    let first = draw();
    let second = draw();
    assert_ne!(first, second);

    rng::set_state(CPU, &state).unwrap();
    assert_eq!(draw(), first);
    {
        let _fork = Fork::new(CPU).unwrap();
        rng::manual_seed(CPU, 99).unwrap();
        let _ = draw();
    }
    assert_eq!(draw(), second, "a fork leaves no trace");

    let third = {
        let _fork = Fork::new(CPU).unwrap();
        draw()
    };
    let panicked = catch_unwind(|| {
        let _replay = Replay::new(CPU, &state).unwrap();
        assert_eq!(draw(), first);
        panic!("within a replay");
    });
    assert!(panicked.is_err());
    assert_eq!(draw(), third, "a replay goes on from where it was");

    rng::manual_seed(CPU, 7).unwrap();
    assert_eq!(draw(), first);
    let mut own = Generator::new(CPU, 1).unwrap();
    own.normal_(&mut Tensor::zeros([64], DOUBLE_CPU), 0.0, 1.0).unwrap();
    assert_eq!(draw(), second, "a generator of one's own does not move the default one");

    // Dropout seen again: what activation checkpoints live on.
    let state = rng::get_state(CPU).unwrap();
    let mask = Tensor::ones([256], DOUBLE_CPU).dropout(0.5, true);
    let _replay = Replay::new(CPU, &state).unwrap();
    assert_eq!(Tensor::ones([256], DOUBLE_CPU).dropout(0.5, true), mask);

    assert!(rng::set_state(CPU, &Tensor::zeros([3], (Kind::Uint8, CPU))).is_err());
    assert!(Replay::new(CPU, &Tensor::zeros([3], (Kind::Float, CPU))).is_err());
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    if tch::Cuda::is_available() {
        return;
    }
    let message = rng::get_state(Device::Cuda(0)).unwrap_err().to_string();
    assert!(!message.contains("Exception raised"), "{message}");
    assert!(rng::manual_seed(Device::Cuda(usize::MAX), 1).is_err());
    assert!(Generator::new(Device::Cuda(0), 1).is_err());
}

#[test]
fn generators_are_reproducible_and_independent() {
    let fill = |seed: u64| {
        let mut generator = Generator::new(CPU, seed).unwrap();
        let mut normal = Tensor::zeros([1000], DOUBLE_CPU).set_requires_grad(true);
        generator.normal_(&mut normal, 2.0, 0.5).unwrap();
        let mut uniform = Tensor::zeros([1000], DOUBLE_CPU);
        generator.uniform_(&mut uniform, -1.0, 3.0).unwrap();
        let mut coins = Tensor::zeros([1000], DOUBLE_CPU);
        generator.bernoulli_(&mut coins, 0.25).unwrap();
        let mut dice = Tensor::zeros([1000], (Kind::Int64, CPU));
        generator.random_(&mut dice, 1, 7).unwrap();
        (normal.detach(), uniform, coins, dice, generator.permutation(50).unwrap())
    };
    let (a, b, c) = (fill(5), fill(5), fill(6));
    assert!(a == b && a.0 != c.0 && a.4 != c.4);
    let value = |tensor: Tensor| tensor.double_value(&[]);
    assert!((value(a.0.mean(None)) - 2.0).abs() < 0.1 && (value(a.0.std(true)) - 0.5).abs() < 0.05);
    assert!(value(a.1.min()) >= -1.0 && value(a.1.max()) < 3.0);
    assert!((value(a.2.mean(None)) - 0.25).abs() < 0.06);
    assert_eq!((a.3.min().int64_value(&[]), a.3.max().int64_value(&[])), (1, 6));
    assert_eq!(a.4.sort(0, false).0, Tensor::arange(50, (Kind::Int64, CPU)));
}

#[test]
fn the_state_of_a_generator_can_be_kept() {
    let mut generator = Generator::new(CPU, u64::MAX).unwrap();
    let state = generator.state().unwrap();
    let mut first = Tensor::zeros([8], DOUBLE_CPU);
    generator.uniform_(&mut first, 0.0, 1.0).unwrap();
    let mut again = Tensor::zeros([8], DOUBLE_CPU);
    generator.set_state(&state).unwrap();
    generator.uniform_(&mut again, 0.0, 1.0).unwrap();
    assert_eq!(first, again);
    assert!(generator.normal_(&mut again, 0.0, -1.0).is_err());
    assert!(generator.uniform_(&mut Tensor::zeros([2], (Kind::Int64, CPU)), 0.0, 1.0).is_err());
}
