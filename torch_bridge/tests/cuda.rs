//! What differs on a GPU: the autograd thread, Philox generators, streams, memory. Does nothing where there is none.

use std::sync::{Mutex, PoisonError};

use tch::{Cuda, Device, Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::cuda::graph::{self, Graph, Pool};
use torch_bridge::guards::Autocast;
use torch_bridge::optim::{self, FusedAdamW};
use torch_bridge::rng::{self, Fork, Generator, Replay};
use torch_bridge::{Result, cuda, device, memory, tensors};

const GPU: Device = Device::Cuda(0);
const FLOAT: (Kind, Device) = (Kind::Float, GPU);

/// Held by tests that draw from the device's one default generator.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Whether to go on. Every test asks first, so the library is open before any torch call.
fn there_is_a_gpu() -> bool {
    let status = cuda::open();
    let there = status.opened && Cuda::is_available();
    if !there {
        println!("skipped: {}", status.reason.unwrap_or_else(|| "no GPU".to_owned()));
    }
    there
}

struct Square {
    panics: bool,
}

impl Function for Square {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        saved.save(&inputs[0]);
        Ok(vec![inputs[0].f_square()?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        assert!(!self.panics, "on the autograd thread");
        Ok(vec![grads[0].as_ref().map(|grad| grad * &saved[0] * 2.0)])
    }
}

#[test]
fn functions_run_on_the_autograd_thread_and_panics_come_back() {
    if !there_is_a_gpu() {
        return;
    }
    let x = Tensor::randn([64], FLOAT).set_requires_grad(true);
    for panics in [false, true, false] {
        let y = autograd::apply("square", Square { panics }, &[&x]).unwrap().remove(0);
        let outcome = autograd::backward(&[y.sum(None)], None, false);
        match outcome {
            Ok(()) => assert!(!panics),
            Err(error) => assert!(panics && error.to_string().contains("on the autograd thread"), "{error}"),
        }
    }
    assert!(x.grad().allclose(&(&x * 4.0), 1e-5, 1e-5, false));
}

#[test]
fn generators_replay() {
    if !there_is_a_gpu() {
        return;
    }
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let mut generators = [5, 5, 6].map(|seed| Generator::new(GPU, seed).unwrap());
    let drawn = generators.each_mut().map(|generator| {
        let mut tensor = Tensor::zeros([256], FLOAT);
        generator.normal_(&mut tensor, 0.0, 1.0).unwrap();
        tensor
    });
    assert!(drawn[0] == drawn[1] && drawn[0] != drawn[2]);

    rng::manual_seed(GPU, 3).unwrap();
    let state = rng::get_state(GPU).unwrap();
    let draw = || Tensor::randn([256], FLOAT);
    let (first, second) = (draw(), draw());
    rng::set_state(GPU, &state).unwrap();
    assert_eq!(draw(), first);
    {
        let _fork = Fork::new(GPU).unwrap();
        let _ = draw();
        let _replay = Replay::new(GPU, &state).unwrap();
        assert_eq!(draw(), first);
    }
    assert_eq!(draw(), second);
}

#[test]
fn steps_and_clipping_agree_with_the_cpu() {
    if !there_is_a_gpu() {
        return;
    }
    let run = |device: Device| {
        let values: Vec<f32> = (0..300).map(|i| (i as f32 * 0.37).sin()).collect();
        let make = |scale: f64| vec![(Tensor::from_slice(&values) * scale).to_device(device)];
        let (params, grads) = (make(1.0), make(3.0));
        let norm = optim::clip_grad_norm_(&grads, 1.0).unwrap().to_device(Device::Cpu);
        let zeros = || vec![params[0].zeros_like()];
        let (first, second) = (zeros(), zeros());
        let steps = [Tensor::ones([] as [i64; 0], (Kind::Float, device))];
        optim::fused_adamw_(&FusedAdamW {
            params: &params,
            grads: &grads,
            exp_avgs: &first,
            exp_avg_sqs: &second,
            max_exp_avg_sqs: &[],
            state_steps: &steps,
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.1,
            eps: 1e-8,
            amsgrad: false,
            maximize: false,
        })
        .unwrap();
        (norm, params[0].to_device(Device::Cpu))
    };
    let (cpu, gpu) = (run(Device::Cpu), run(GPU));
    assert!(gpu.0.allclose(&cpu.0, 1e-5, 1e-6, false) && gpu.1.allclose(&cpu.1, 1e-4, 1e-5, false));
}

#[test]
fn memory_streams_and_slices() {
    if !there_is_a_gpu() {
        return;
    }
    let before = memory::stats(GPU).unwrap();
    let block = Tensor::zeros([32 << 20], (Kind::Uint8, GPU));
    let during = memory::stats(GPU).unwrap();
    assert!(during.allocated >= before.allocated + (32 << 20) && during.reserved >= during.allocated);
    assert!(tensors::slice::<u8>(&block).unwrap_err().to_string().contains("on the CPU"));
    assert!(!tensors::data_ptr_checked(&block, GPU, Kind::Uint8).unwrap().is_null());
    assert_eq!(tensors::to_bytes(&block.narrow(0, 0, 8)).unwrap(), [0; 8]);
    drop(block);
    memory::reset_peak(GPU).unwrap();
    memory::empty_cache(GPU).unwrap();
    assert!(memory::capacity(GPU).unwrap().total > during.allocated);

    assert_eq!(device::current_stream(GPU).unwrap().1, 0, "the default stream");
    device::synchronize(GPU).unwrap();
}

#[test]
fn autocast_lowers_products() {
    if !there_is_a_gpu() {
        return;
    }
    let x = Tensor::ones([8, 8], FLOAT);
    let _autocast = Autocast::new(GPU, Kind::BFloat16, true);
    assert_eq!(x.matmul(&x).kind(), Kind::BFloat16);
}

/// Steps of gradient descent with dropout: recorded and replayed as a graph, and operation by operation, they give the
/// same bits; what cannot be recorded is an error, after which everything goes on.
#[test]
fn a_recorded_step_gives_the_bits_of_the_plain_one() {
    if !there_is_a_gpu() {
        assert!(graph::available().is_err());
        return;
    }
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    graph::use_side_stream(GPU).unwrap();
    let step = |x: &Tensor, weight: &Tensor| -> Result<Tensor> {
        let y = x.matmul(weight).dropout(0.3, true).square().mean(Kind::Float);
        autograd::backward(&[&y], None, false)?;
        Ok(y.detach())
    };
    let run = |recorded: bool| -> (Vec<Vec<f32>>, Vec<f32>) {
        rng::manual_seed(GPU, 11).unwrap();
        let weight = Tensor::randn([64, 32], FLOAT).set_requires_grad(true);
        let batches: Vec<Tensor> = (0..6).map(|_| Tensor::randn([16, 64], FLOAT)).collect();
        let mut held = None;
        let mut losses = Vec::new();
        for (i, batch) in batches.iter().enumerate() {
            let _ = weight.grad().defined().then(|| weight.grad().zero_());
            let loss = if i < 2 || !recorded {
                step(batch, &weight).unwrap()
            } else {
                if held.is_none() {
                    let x = batch.zeros_like();
                    let (graph, loss) = Graph::record(Pool::new().unwrap(), || step(&x, &weight)).unwrap();
                    held = Some((graph, x, loss));
                }
                let (graph, x, loss) = held.as_mut().unwrap();
                x.copy_(batch);
                graph.replay().unwrap();
                loss.copy()
            };
            let _ = tch::no_grad(|| weight.shallow_clone().subtract_(&(weight.grad() * 0.1)));
            losses.push(Vec::<f32>::try_from(loss.view(-1)).unwrap());
        }
        (losses, Vec::<f32>::try_from(weight.detach().view(-1)).unwrap())
    };
    let plain = run(false);
    assert!(run(true) == plain);

    let x = Tensor::ones([4], FLOAT);
    let refused =
        Graph::record(Pool::new().unwrap(), || -> Result<f64> { Ok(f64::try_from(x.f_sum(None)?)?) });
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("captur"), "{error}");
    assert!(run(false) == plain);
}
