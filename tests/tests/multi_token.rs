//! Several heads on one trunk that predict tokens at several offsets.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::sync::Arc;

use hymba_plus::{model::Model, state::SpanInput};
use hymba_tests::max_difference;
use recipes::{LanguageModel, Target};
use tch::{Device, Kind, Tensor};
use training::{
    Task,
    data::{Batch, Blocks, Fingerprint, IGNORE_INDEX, Loader, TokenStream, ValidationBlocks},
};

const MODEL: &str = "
d_model: 8
n_layers: 1
vocab_size: 7
tie_embeddings: false
embedding: token
norm: rms_norm
head: language
heads: { second: language, third: language }
block_pattern:
  kind: parallel
  layer:
    mixers: [{ kind: attention, n_heads: 2, position: rope }]
    channel_mixer: { kind: relu2, d_hidden: 16 }
";

fn stream() -> Arc<TokenStream> {
    let documents: [&[u32]; 4] = [&[1, 2, 3], &[4], &[5, 6, 1, 2, 3, 4, 5], &[2, 2, 6, 6]];
    Arc::new(TokenStream::from_documents(documents, 0))
}

fn task(targets: &[(&str, usize, f64)]) -> LanguageModel {
    let target = |&(head, offset, weight): &(&str, usize, f64)| Target { head: head.into(), offset, weight };
    LanguageModel {
        model: hymba_tests::model(MODEL, Kind::Double, 2),
        label_smoothing: 0.0,
        z_loss: 0.0,
        targets: targets.iter().map(target).collect(),
        validation: Some(ValidationBlocks::new(stream(), 5, 2, 0, Device::Cpu).unwrap()),
        validation_bytes: 0,
    }
}

fn batch() -> Batch {
    let mut blocks = Blocks::new(stream(), 9, 1, Device::Cpu, Fingerprint::default()).unwrap();
    blocks.next_batches(2, 1).unwrap().remove(0)
}

/// Cross-entropy of one head, token by token, over targets that lie `offset` ahead in the same document.
fn naive(model: &Model, batch: &Batch, head: Option<&str>, offset: usize) -> Tensor {
    let initial = model.initial_state(false).unwrap();
    let input = SpanInput { resets: Some(&batch.resets), ..SpanInput::default() };
    let (hidden, _) = model.forward(&batch.tokens, &initial, &initial, input).unwrap();
    let logits = head.map_or_else(|| model.head(&hidden), |name| model.head_named(name, &hidden)).unwrap();
    let table = |t: &Tensor| Vec::<Vec<i64>>::try_from(t.to_kind(Kind::Int64)).unwrap();
    let (targets, starts) = (table(&batch.targets), table(&batch.resets));
    let mut sum = Tensor::zeros([], (Kind::Double, Device::Cpu));
    for row in 0..targets.len() {
        for at in 0..targets[row].len() {
            let last = at + offset - 1; // the input whose next token is meant
            if last >= targets[row].len() || (at + 1..=last).any(|t| starts[row][t] == 1) {
                continue;
            }
            let target = targets[row][last];
            if target != IGNORE_INDEX {
                let logits = logits.get(row as i64).get(at as i64);
                sum -= logits.log_softmax(-1, Kind::Double).get(target);
            }
        }
    }
    sum
}

#[test]
fn the_loss_is_the_weighted_sum_and_gradients_reach_every_head() {
    let batch = batch();
    assert!(batch.has_resets());
    let task = task(&[("second", 2, 0.5), ("third", 4, 2.0)]);
    let loss = task.loss(&batch).unwrap().sum;
    let gradients = |loss: &Tensor, model: &Model| -> Vec<Tensor> {
        let tensors = model.parameters().tensors();
        for tensor in &tensors {
            let mut gradient = tensor.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        loss.backward();
        tensors.iter().map(|tensor| tensor.grad().copy()).collect()
    };
    let got = gradients(&loss, &task.model);
    let main = naive(&task.model, &batch, None, 1);
    let (second, third) =
        (naive(&task.model, &batch, Some("second"), 2), naive(&task.model, &batch, Some("third"), 4));
    let expected = main + second * 0.5 + third * 2.0;
    assert!(max_difference(&loss, &expected) < 1e-10);
    let expected = gradients(&expected, &task.model);
    for ((got, expected), parameter) in got.iter().zip(&expected).zip(task.model.parameters()) {
        assert!(max_difference(got, expected) < 1e-10, "{}", parameter.plan.name);
        assert!(got.abs().max().double_value(&[]) > 0.0, "{} is not reached", parameter.plan.name);
    }
}

#[test]
fn each_head_is_validated_on_what_it_predicts() {
    let mut task = task(&[("second", 2, 1.0), ("third", 3, 1.0)]);
    let values = {
        let _no_grad = torch_bridge::guards::NoGrad::new();
        task.evaluate().unwrap()
    };
    let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["validation_loss", "validation_loss_second", "validation_loss_third"]);
    let blocks = ValidationBlocks::new(stream(), 5, 2, 0, Device::Cpu).unwrap();
    for ((head, offset), (name, value)) in
        [(None, 1), (Some("second"), 2), (Some("third"), 3)].into_iter().zip(&values)
    {
        let (mut sum, mut count) = (0.0, 0);
        for batch in blocks.batches() {
            let batch = batch.unwrap();
            sum += naive(&task.model, &batch, head, offset).double_value(&[]);
            let targets = batch.targets_at(offset).unwrap();
            count += targets.ne(IGNORE_INDEX).sum(Kind::Int64).int64_value(&[]);
        }
        assert!((value - sum / count as f64).abs() < 1e-10, "{name}");
    }
    assert!(task.model.plan().heads.contains_key("third"));
}
