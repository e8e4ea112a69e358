//! The law of states: any split into calls, any batch, any padding, any packing gives the output of one plain full
//! call, and meta tokens that are computed once give what each document with meta tokens of its own gives.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::collections::BTreeMap;

use hymba_plus::{
    model::Model,
    state::{ModelState, SpanInput},
};
use hymba_tests::{max_difference, naive, official};
use tch::{Device, Kind, Tensor};
use torch_bridge::guards::NoGrad;

const WINDOW: i64 = 8;
const EXACT: f64 = 1e-10;

fn hymba() -> (Model, naive::Shape) {
    // Weights of the official fixture, the plain rotary embedding of `kqnorm` without its norms.
    let mut section = official::model_section("kqnorm");
    let attention = &mut section["block_pattern"]["layer"]["mixers"][0];
    assert_eq!(attention["window"], WINDOW);
    attention["qk_norm"] = "none".into();
    let model = hymba_tests::model(&section.to_string(), Kind::Double, 3);
    let _guard = NoGrad::new();
    for parameter in model.parameters() {
        // Larger than the initialisation, so that no path is drowned by the residual stream.
        if parameter.plan.shape.len() == 2 && parameter.plan.weight_decay {
            let _ = parameter.tensor.shallow_clone().multiply_scalar_(5.0);
        }
    }
    let shape = naive::Shape {
        heads: [5, 1, 8, 16],
        window: WINDOW,
        global: vec![0, 5],
        producers: BTreeMap::from([(2, 1), (4, 3)]),
        state_and_rank: [16, 5],
        theta: 10_000.0,
    };
    (model, shape)
}

fn tokens(n: i64, seed: i64) -> Vec<i64> {
    (0..n).map(|i| (i * i * 7 + i * 13 + seed * 31) % 97).collect()
}

fn row(ids: &[i64]) -> Tensor {
    Tensor::from_slice(ids).unsqueeze(0)
}

fn full(model: &Model, ids: &[i64]) -> Tensor {
    let initial = model.initial_state(false).unwrap();
    model.forward(&row(ids), &initial, &initial, SpanInput::default()).unwrap().0.squeeze_dim(0)
}

#[test]
fn one_document_equals_the_equations() {
    let (model, shape) = hymba();
    let _guard = NoGrad::new();
    for n in [1, 2, 7, 8, 9, 30] {
        let ids = tokens(n, n);
        let error = max_difference(&full(&model, &ids), &naive::forward(&model, &shape, &ids));
        assert!(error < EXACT, "{n} tokens: {error:e}");
    }
}

#[test]
fn packed_documents_equal_documents_alone_with_every_gradient() {
    let (model, shape) = hymba();
    // Two rows of one length, documents shorter and longer than the window; a row may start inside nothing.
    let rows: [&[i64]; 2] = [&[1, 2, 20, 1, 9], &[5, 12, 2, 14]];
    let documents: Vec<Vec<Vec<i64>>> = rows
        .iter()
        .enumerate()
        .map(|(r, lengths)| {
            lengths.iter().enumerate().map(|(i, &n)| tokens(n, (r * 10 + i) as i64)).collect()
        })
        .collect();
    let time = documents[0].iter().map(Vec::len).sum::<usize>();
    let ids =
        Tensor::stack(&documents.iter().map(|row| Tensor::from_slice(&row.concat())).collect::<Vec<_>>(), 0);
    let resets: Vec<bool> =
        documents.iter().flatten().flat_map(|document| (0..document.len()).map(|i| i == 0)).collect();
    let resets = Tensor::from_slice(&resets).view([2, time as i64]);
    let weights = Tensor::randn([2, time as i64, 40], (Kind::Double, Device::Cpu));
    let gradients = |loss: Tensor| -> Vec<Tensor> {
        for parameter in model.parameters() {
            let mut tensor = parameter.tensor.shallow_clone();
            tensor.zero_grad();
        }
        loss.backward();
        model.parameters().iter().map(|parameter| parameter.tensor.grad().copy()).collect()
    };
    let initial = model.initial_state(true).unwrap();
    let input = SpanInput { resets: Some(&resets), ..SpanInput::default() };
    let (packed, _) = model.forward(&ids, &initial, &initial, input).unwrap();
    let alone: Vec<Tensor> = documents
        .iter()
        .map(|row| {
            Tensor::cat(&row.iter().map(|ids| naive::forward(&model, &shape, ids)).collect::<Vec<_>>(), 0)
        })
        .collect();
    let alone = Tensor::stack(&alone, 0);
    let error = max_difference(&packed, &alone);
    assert!(error < EXACT, "outputs: {error:e}");
    let ours = gradients((&packed * &weights).sum(Kind::Double));
    let theirs = gradients((&alone * &weights).sum(Kind::Double));
    let mut worst = 0.0_f64;
    for ((parameter, ours), theirs) in model.parameters().iter().zip(&ours).zip(&theirs) {
        let scale = theirs.abs().max().double_value(&[]).max(1.0);
        let error = max_difference(ours, theirs) / scale;
        assert!(error < EXACT, "gradient of {}: {error:e}", parameter.plan.name);
        assert!(theirs.abs().max().double_value(&[]) > 0.0, "{} takes no part", parameter.plan.name);
        worst = worst.max(error);
    }
    println!("outputs {error:.1e}, worst gradient {worst:.1e}");
}

/// Runs `ids` in calls of the given lengths and returns all hidden vectors.
fn in_calls(model: &Model, ids: &Tensor, lengths: &[i64], resets: Option<&Tensor>) -> (Tensor, ModelState) {
    let initial = model.initial_state(false).unwrap();
    let (mut state, mut outputs, mut start) = (initial.share(), Vec::new(), 0);
    for &length in lengths {
        let chunk = |tensor: &Tensor| tensor.narrow(1, start, length);
        let resets = resets.map(chunk);
        let input = SpanInput { resets: resets.as_ref(), ..SpanInput::default() };
        let (hidden, next) = model.forward(&chunk(ids), &state, &initial, input).unwrap();
        outputs.push(hidden);
        state = next;
        start += length;
    }
    assert_eq!(start, ids.size()[1]);
    (Tensor::cat(&outputs, 1), state)
}

fn chunks(total: i64, size: i64) -> Vec<i64> {
    (0..total).step_by(size as usize).map(|start| size.min(total - start)).collect()
}

#[test]
fn every_split_into_calls_is_the_full_call() {
    let (model, _) = hymba();
    let _guard = NoGrad::new();
    let ids = Tensor::stack(&[Tensor::from_slice(&tokens(40, 1)), Tensor::from_slice(&tokens(40, 2))], 0);
    let (expected, _) = in_calls(&model, &ids, &[40], None);
    for size in [1, 3, 7] {
        let error = max_difference(&in_calls(&model, &ids, &chunks(40, size), None).0, &expected);
        assert!(error < EXACT, "chunks of {size}: {error:e}");
    }
    let error = max_difference(&in_calls(&model, &ids, &[5, 0, 1, 0, 20, 14], None).0, &expected);
    assert!(error < EXACT, "with empty calls: {error:e}");
    let resets: Vec<bool> = (0..80).map(|i| [0, 1, 3, 17, 40, 41, 62, 79].contains(&i)).collect();
    let resets = Tensor::from_slice(&resets).view([2, 40]);
    let (expected, _) = in_calls(&model, &ids, &[40], Some(&resets));
    for size in [1, 3, 7] {
        let error = max_difference(&in_calls(&model, &ids, &chunks(40, size), Some(&resets)).0, &expected);
        assert!(error < EXACT, "packed, chunks of {size}: {error:e}");
    }
}

#[test]
fn padding_anywhere_changes_nothing() {
    let (model, _) = hymba();
    let _guard = NoGrad::new();
    let initial = model.initial_state(false).unwrap();
    // Three turns of different lengths in one batch, padded left, right and in the middle.
    let turns: [[i64; 3]; 3] = [[4, 11, 0], [12, 3, 9], [1, 1, 30]];
    let total: Vec<Vec<i64>> =
        (0..3).map(|r| tokens(turns.iter().map(|turn| turn[r]).sum(), r as i64)).collect();
    let mut state = initial.share();
    let mut seen = [0_usize; 3];
    let mut got: Vec<Vec<Tensor>> = vec![Vec::new(), Vec::new(), Vec::new()];
    for (t, turn) in turns.iter().enumerate() {
        let time = turn.iter().max().unwrap() + 2;
        let (mut ids, mut valid) = (vec![0_i64; (3 * time) as usize], vec![false; (3 * time) as usize]);
        for r in 0..3 {
            for i in 0..turn[r] {
                let at = match (t + r) % 3 {
                    0 => i,
                    1 => time - turn[r] + i,
                    _ => {
                        if i < turn[r] / 2 {
                            i
                        } else {
                            time - turn[r] + i
                        }
                    }
                };
                ids[(r as i64 * time + at) as usize] = total[r][seen[r] + i as usize];
                valid[(r as i64 * time + at) as usize] = true;
            }
        }
        let valid_tensor = Tensor::from_slice(&valid).view([3, time]);
        let input = SpanInput { valid: Some(&valid_tensor), ..SpanInput::default() };
        let (hidden, next) =
            model.forward(&Tensor::from_slice(&ids).view([3, time]), &state, &initial, input).unwrap();
        for r in 0..3 {
            let rows: Vec<i64> = (0..time).filter(|i| valid[(r as i64 * time + i) as usize]).collect();
            got[r].push(hidden.get(r as i64).index_select(0, &Tensor::from_slice(&rows)));
            seen[r] += turn[r] as usize;
        }
        state = next;
    }
    for (r, ids) in total.iter().enumerate() {
        let error = max_difference(&Tensor::cat(&got[r], 0), &full(&model, ids));
        assert!(error < EXACT, "row {r}: {error:e}");
    }
    let positions: Vec<i64> = Vec::try_from(&state.next_position).unwrap();
    assert_eq!(positions, total.iter().map(|ids| 4 + ids.len() as i64).collect::<Vec<_>>());
}

#[test]
fn states_are_values() {
    let (model, _) = hymba();
    let _guard = NoGrad::new();
    let initial = model.initial_state(false).unwrap();
    let (a, b) = (tokens(12, 1), tokens(12, 2));
    let ids = Tensor::stack(&[Tensor::from_slice(&a), Tensor::from_slice(&b)], 0);
    let (_, state) = model.forward(&ids, &initial, &initial, SpanInput::default()).unwrap();
    let snapshot = state.share();
    // A wrong continuation is rolled back by going on from the snapshot; rows are swapped and repeated.
    let _ = model.forward(&ids, &state, &initial, SpanInput::default()).unwrap();
    let picked = snapshot.select(&Tensor::from_slice(&[1_i64, 0, 1]), 2).unwrap();
    let more = tokens(9, 5);
    let more_ids = row(&more).expand([3, -1], false);
    let (hidden, _) = model.forward(&more_ids, &picked, &initial, SpanInput::default()).unwrap();
    for (r, before) in [&b, &a, &b].into_iter().enumerate() {
        let expected = full(&model, &[before.as_slice(), &more].concat()).narrow(0, 12, 9);
        let error = max_difference(&hidden.get(r as i64), &expected);
        assert!(error < EXACT, "row {r}: {error:e}");
    }
}

#[test]
fn windowed_states_stop_growing() {
    let (model, _) = hymba();
    let _guard = NoGrad::new();
    let ids = row(&tokens(40, 1));
    let (_, state) = in_calls(&model, &ids, &chunks(40, 1), None);
    assert_eq!(state.layers[1][0].get("k").unwrap().size()[2], WINDOW);
    assert_eq!(state.layers[0][0].get("k").unwrap().size()[2], 40);
    assert!(state.layers[2][0].find("k").is_none(), "a consumer keeps nothing");
    let plan = model.plan();
    for (layer, mixer, planned) in plan.states() {
        let index = plan.layers[layer].mixers.iter().position(|m| m.name == mixer).unwrap();
        let got = state.layers[layer][index].get(&planned.name).unwrap();
        assert_eq!(
            got.numel() as i64,
            planned.elements(plan.meta_tokens, 40),
            "layer {layer} {mixer} {}",
            planned.name
        );
    }
}

/// A state that padding or packing left with holes is read with care by a later call that knows of neither.
#[test]
fn a_plain_call_after_a_ragged_one_sees_no_holes() {
    let (model, _) = hymba();
    let _guard = NoGrad::new();
    let initial = model.initial_state(false).unwrap();
    let more = tokens(5, 9);
    let go_on = |state: &ModelState, before: &[i64], what: &str| {
        let mut state = state.share();
        let expected = full(&model, &[before, &more].concat()).narrow(0, before.len() as i64, 5);
        for (i, token) in more.iter().enumerate() {
            let (hidden, next) =
                model.forward(&row(&[*token]), &state, &initial, SpanInput::default()).unwrap();
            let error = max_difference(&hidden.get(0), &expected.narrow(0, i as i64, 1));
            assert!(error < EXACT, "{what}, token {i}: {error:e}");
            state = next;
        }
    };
    // One row, packed: the next token belongs to the second document.
    let ids = tokens(6, 1);
    let resets = Tensor::from_slice(&[true, false, false, true, false, false]).view([1, 6]);
    let input = SpanInput { resets: Some(&resets), ..SpanInput::default() };
    let (_, state) = model.forward(&row(&ids), &initial, &initial, input).unwrap();
    go_on(&state, &ids[3..], "packed");
    // One row, padded left.
    let valid = Tensor::from_slice(&[false, false, true, true, true, true]).view([1, 6]);
    let input = SpanInput { valid: Some(&valid), ..SpanInput::default() };
    let (_, state) = model.forward(&row(&ids), &initial, &initial, input).unwrap();
    go_on(&state, &ids[2..], "padded");
    // A short row of a ragged batch that goes on alone.
    let valid =
        Tensor::from_slice(&[true, true, true, false, false, false, true, true, true, true, true, true]);
    let valid = valid.view([2, 6]);
    let input = SpanInput { valid: Some(&valid), ..SpanInput::default() };
    let (_, state) = model.forward(&row(&ids).expand([2, -1], false), &initial, &initial, input).unwrap();
    go_on(&state.select(&Tensor::from_slice(&[0_i64]), 2).unwrap(), &ids[..3], "alone");
}
