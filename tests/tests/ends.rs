//! Embeddings of images and series, and the heads that follow them, against the same things written out.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::{model::Model, state::SpanInput};
use hymba_tests::max_difference;
use tch::{Device, Kind, Tensor};

/// A model with one layer that changes nothing but is there, so that what stands at the ends shows.
fn section(embedding: &str, head: &str) -> String {
    format!(
        "
d_model: 6
n_layers: 1
embedding: {embedding}
norm: none
head: {head}
block_pattern:
  kind: parallel
  layer: {{ mixers: [none], channel_mixer: {{ kind: gelu, d_hidden: 4 }} }}
"
    )
}

fn model_of(embedding: &str, head: &str) -> Model {
    let model = hymba_tests::model(&section(embedding, head), Kind::Double, 3);
    // The layer adds nothing, and nothing that was zero stays so.
    for parameter in model.parameters() {
        let values = if parameter.plan.name.contains("down") {
            parameter.tensor.zeros_like()
        } else {
            tch::manual_seed(parameter.plan.name.len() as i64);
            Tensor::randn(parameter.plan.shape.as_slice(), (Kind::Double, Device::Cpu)) * 0.5
        };
        model.parameters().set(&parameter.plan.name, &values).unwrap();
    }
    model
}

fn parameter(model: &Model, name: &str) -> Tensor {
    model.parameters().get(name).unwrap_or_else(|| panic!("{name}")).tensor.detach()
}

fn random(shape: &[i64]) -> Tensor {
    tch::manual_seed(11);
    Tensor::randn(shape, (Kind::Double, Device::Cpu))
}

fn hidden(model: &Model, inputs: &Tensor) -> Tensor {
    let initial = model.initial_state(false).unwrap();
    model.forward(inputs, &initial, &initial, SpanInput::default()).unwrap().0
}

/// The gradient of every parameter and the inputs, against central differences at three places of each.
fn check_gradients(model: &Model, inputs: &Tensor) {
    let inputs = inputs.detach().set_requires_grad(true);
    let loss = |inputs: &Tensor| {
        let outputs = model.outputs(inputs, true).unwrap();
        let weights = Tensor::arange(outputs.numel() as i64, (Kind::Double, Device::Cpu)).sin();
        (outputs.reshape([-1]) * weights).sum(Kind::Double)
    };
    let mut tensors = model.parameters().tensors();
    tensors.push(inputs.shallow_clone());
    loss(&inputs).backward();
    let gradients: Vec<Tensor> = tensors.iter().map(|tensor| tensor.grad().copy()).collect();
    let mut reached = 0;
    for (tensor, gradient) in tensors.iter().zip(&gradients) {
        let (flat, gradient) = (tensor.detach().view(-1), gradient.reshape([-1]));
        for place in [0, flat.numel() as i64 / 2, flat.numel() as i64 - 1] {
            let value = flat.double_value(&[place]);
            let at = |moved: f64| {
                let _ = flat.get(place).fill_(moved);
                loss(&inputs).double_value(&[])
            };
            let step = 1e-5;
            let expected = (at(value + step) - at(value - step)) / (2.0 * step);
            let _ = flat.get(place).fill_(value);
            let got = gradient.double_value(&[place]);
            assert!((got - expected).abs() <= 1e-7 * expected.abs().max(1.0), "{got} {expected}");
            reached += usize::from(expected != 0.0);
        }
    }
    assert!(reached > tensors.len(), "the loss depends on next to nothing");
}

#[test]
fn patches_are_a_strided_convolution_row_by_row() {
    let model = model_of(
        "{ kind: patch, image_size: 12, patch_size: 4, channels: 2 }",
        "{ kind: classifier, classes: 3, pooling: last }",
    );
    let images = random(&[2, 2, 12, 12]);
    let (weight, bias) = (parameter(&model, "embedding.weight"), parameter(&model, "embedding.bias"));
    let expected = images.conv2d(&weight.view([6, 2, 4, 4]), Some(&bias), [4, 4], [0, 0], [1, 1], 1);
    let expected = expected.flatten(2, 3).transpose(1, 2) + parameter(&model, "embedding.position");
    let hidden = hidden(&model, &images);
    assert_eq!(hidden.size(), [2, 9, 6]);
    assert!(max_difference(&hidden, &expected) < 1e-12);
    let (weight, bias) = (parameter(&model, "head.weight"), parameter(&model, "head.bias"));
    let logits = expected.select(1, 8).linear(&weight, Some(&bias));
    assert!(max_difference(&model.outputs(&images, false).unwrap(), &logits) < 1e-12);
    check_gradients(&model, &images);
    let plan = model.plan();
    assert_eq!(plan.embedding.module.input_axis("height").unwrap().size, 12);
    assert_eq!(plan.head.module.output_axis("class").unwrap().size, 3);
    for shape in [&[2_i64, 2, 12, 11][..], &[2, 1, 12, 12], &[12, 12], &[2, 2, 12, 12, 1]] {
        let error = model.outputs(&random(shape), false).unwrap_err().to_string();
        assert!(error.contains("images are [batch, 2, 12, 12], got"), "{error}");
    }
}

#[test]
fn poolings_are_what_they_say() {
    let patch = "{ kind: patch, image_size: 6, patch_size: 2, channels: 1, learned_positions: false }";
    for pooling in ["mean", "last", "attention"] {
        let model = model_of(patch, &format!("{{ kind: classifier, classes: 2, pooling: {pooling} }}"));
        let images = random(&[3, 1, 6, 6]);
        let h = hidden(&model, &images);
        let pooled = match pooling {
            "mean" => h.sum_dim_intlist([1_i64].as_slice(), false, Kind::Double) / 9.0,
            "last" => h.select(1, 8),
            _ => {
                let query = parameter(&model, "head.query");
                let mut rows = Vec::new();
                for row in 0..3 {
                    let vectors: Vec<Tensor> = (0..9).map(|token| h.get(row).get(token)).collect();
                    let score = |v: &Tensor| (v.dot(&query).double_value(&[]) / 6.0_f64.sqrt()).exp();
                    let sum: f64 = vectors.iter().map(score).sum();
                    rows.push(vectors.iter().fold(query.zeros_like(), |all, v| all + v * (score(v) / sum)));
                }
                Tensor::stack(&rows, 0)
            }
        };
        let logits = pooled.linear(&parameter(&model, "head.weight"), Some(&parameter(&model, "head.bias")));
        assert!(max_difference(&model.outputs(&images, false).unwrap(), &logits) < 1e-12, "{pooling}");
        check_gradients(&model, &images);
    }
}

#[test]
fn dropout_is_for_training_only() {
    for (embedding, head, shape) in [
        (
            "{ kind: patch, image_size: 4, patch_size: 2, channels: 1 }",
            "{ kind: classifier, classes: 2, dropout: 0.5 }",
            &[8_i64, 1, 4, 4][..],
        ),
        (
            "{ kind: series_patch, input_length: 4, patch_length: 2 }",
            "{ kind: forecaster, horizon: 2, dropout: 0.5 }",
            &[8, 4, 1],
        ),
    ] {
        let (model, inputs) = (model_of(embedding, head), random(shape));
        let outputs = |training| model.outputs(&inputs, training).unwrap();
        assert!(outputs(false).equal(&outputs(false)));
        assert!(max_difference(&outputs(true), &outputs(false)) > 1e-3);
    }
}

/// Windows with a mean and a scale of their own in every channel.
fn windows(shape: &[i64; 3]) -> Tensor {
    let scale = Tensor::from_slice(&[1.0, 20.0, 0.3]).narrow(0, 0, shape[2]);
    random(shape) * &scale + scale * 5.0
}

/// A forecast written out, value by value: `[batch, horizon, channels, quantiles]`.
fn naive_forecast(model: &Model, x: &Tensor, affine: bool, mixed: bool, all: bool) -> Tensor {
    let (patch, stride, horizon, quantiles) = (4_usize, 2_usize, 3_usize, 3_usize);
    let (batch, length, channels) = x.size3().unwrap();
    let values = Vec::<Vec<Vec<f64>>>::try_from(x).unwrap();
    let table = |name: &str| Vec::<Vec<f64>>::try_from(parameter(model, name)).unwrap();
    let list = |name: &str| Vec::<f64>::try_from(parameter(model, name)).unwrap();
    let (weight, bias, position) =
        (table("embedding.weight"), list("embedding.bias"), table("embedding.position"));
    let (head, head_bias) = (table("head.weight"), list("head.bias"));
    let (gain, shift) = if affine {
        (list("embedding.affine_weight"), list("embedding.affine_bias"))
    } else {
        (vec![1.0; channels as usize], vec![0.0; channels as usize])
    };
    let mut forecast = Vec::new();
    for window in &values {
        let column = |c: usize| window.iter().map(move |row| row[c]);
        let statistics: Vec<(f64, f64)> = (0..channels as usize)
            .map(|c| {
                let mean = column(c).sum::<f64>() / length as f64;
                let variance = column(c).map(|v| (v - mean).powi(2)).sum::<f64>() / length as f64;
                (mean, (variance + 1e-5).sqrt())
            })
            .collect();
        let normed = |t: usize, c: usize| {
            let (mean, scale) = statistics[c];
            (window[t][c] - mean) / scale * gain[c] + shift[c]
        };
        let groups: Vec<Vec<usize>> = if mixed {
            vec![(0..channels as usize).collect()]
        } else {
            (0..channels as usize).map(|c| vec![c]).collect()
        };
        let mut of_window = vec![vec![vec![0.0; quantiles]; channels as usize]; horizon];
        for group in &groups {
            let tokens: Vec<Vec<f64>> = (0..=(length as usize - patch) / stride)
                .map(|n| {
                    let patch: Vec<f64> = group
                        .iter()
                        .flat_map(|&c| (0..patch).map(move |i| (n * stride + i, c)))
                        .map(|(t, c)| normed(t, c))
                        .collect();
                    (0..6)
                        .map(|d| {
                            let dot: f64 = weight[d].iter().zip(&patch).map(|(w, v)| w * v).sum();
                            dot + bias[d] + position[n][d]
                        })
                        .collect()
                })
                .collect();
            let read: Vec<f64> = if all { tokens.concat() } else { tokens[tokens.len() - 1].clone() };
            for (step, values) in of_window.iter_mut().enumerate() {
                for (place, &c) in group.iter().enumerate() {
                    for (q, value) in values[c].iter_mut().enumerate() {
                        let row = (step * group.len() + place) * quantiles + q;
                        let y: f64 =
                            head[row].iter().zip(&read).map(|(w, v)| w * v).sum::<f64>() + head_bias[row];
                        let (mean, scale) = statistics[c];
                        *value = (y - shift[c]) / gain[c] * scale + mean;
                    }
                }
            }
        }
        forecast.extend(of_window.into_iter().flatten().flatten());
    }
    Tensor::from_slice(&forecast).view([batch, horizon as i64, channels, quantiles as i64])
}

#[test]
fn forecasts_are_those_written_out_and_gradients_are_exact() {
    for (rows, affine, read) in [
        ("channel", false, "all"),
        ("channel", true, "last"),
        ("window", true, "all"),
        ("window", false, "last"),
    ] {
        let embedding = format!(
            "{{ kind: series_patch, input_length: 10, channels: 3, patch_length: 4, stride: 2, rows: {rows}, affine: {affine} }}"
        );
        let head = format!("{{ kind: forecaster, horizon: 3, quantiles: [0.1, 0.5, 0.8], read: {read} }}");
        let (model, x) = (model_of(&embedding, &head), windows(&[2, 10, 3]));
        let outputs = model.outputs(&x, false).unwrap();
        assert_eq!(outputs.size(), [2, 3, 3, 3]);
        let expected = naive_forecast(&model, &x, affine, rows == "window", read == "all");
        assert!(max_difference(&outputs, &expected) < 1e-9, "{rows} {affine} {read}");
        check_gradients(&model, &x);
        // A window that is moved and scaled is forecast moved and scaled, up to what is added to its variance.
        let exact = model_of(&embedding.replace("affine", "eps: 1.0e-20, affine"), &head);
        let (plain, moved) = (exact.outputs(&x, false), exact.outputs(&(&x * 1000.0 - 70.0), false));
        let difference = max_difference(&moved.unwrap(), &(plain.unwrap() * 1000.0 - 70.0));
        assert!(difference < 1e-7, "{rows} {affine} {read}: {difference}");
        let axis = model.plan().head.module.output_axis("quantile").unwrap();
        assert_eq!(axis.values, [0.1, 0.5, 0.8]);
        let error = model.outputs(&windows(&[2, 9, 3]), false).unwrap_err().to_string();
        assert!(error.contains("windows are [batch, 10, 3], got [2, 9, 3]"), "{error}");
    }
}

#[test]
fn without_instance_norm_a_window_stays_as_it_is() {
    let embedding = "{ kind: series_patch, input_length: 4, patch_length: 4, instance_norm: false, learned_positions: false }";
    let model = model_of(embedding, "{ kind: forecaster, horizon: 2, quantiles: [0.5] }");
    let x = windows(&[3, 4, 1]);
    let hidden = x
        .squeeze_dim(2)
        .linear(&parameter(&model, "embedding.weight"), Some(&parameter(&model, "embedding.bias")));
    let expected = hidden.linear(&parameter(&model, "head.weight"), Some(&parameter(&model, "head.bias")));
    let outputs = model.outputs(&x, false).unwrap();
    assert!(max_difference(&outputs.view([3, 2]), &expected) < 1e-10);
}

#[test]
fn a_flat_window_gives_finite_forecasts() {
    let embedding = "{ kind: series_patch, input_length: 4, patch_length: 2, affine: true }";
    let model = model_of(embedding, "{ kind: forecaster, horizon: 2 }");
    let flat = Tensor::full([1, 4, 1], 7.0, (Kind::Double, Device::Cpu));
    let outputs = model.outputs(&flat, false).unwrap();
    assert_eq!(outputs.isfinite().all().int64_value(&[]), 1);
}

#[test]
fn a_classifier_reads_windows_but_not_single_channels() {
    let rows = |rows: &str| {
        format!("{{ kind: series_patch, input_length: 4, channels: 2, patch_length: 2, rows: {rows} }}")
    };
    let head = "{ kind: classifier, classes: 5 }";
    let x = windows(&[3, 4, 2]);
    assert_eq!(model_of(&rows("window"), head).outputs(&x, false).unwrap().size(), [3, 5]);
    let error = model_of(&rows("channel"), head).outputs(&x, false).unwrap_err().to_string();
    assert!(error.contains("`rows: window`"), "{error}");
}
