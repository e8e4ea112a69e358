//! The cache as codes against its definition written out number by number, and what the plan says of it.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::{
    model::{Model, Observers, Taps},
    plan::ModelPlan,
    state::{ModelState, SpanInput},
};
use hymba_tests::{max_difference, relative_rms};
use tch::{Kind, Tensor};
use torch_bridge::guards::NoGrad;

const META: i64 = 3;
const GROUP: i64 = 4;
const RECENT: i64 = 5;
/// Query heads, heads of keys and values, width of a key, of a value.
const HEADS: [i64; 4] = [4, 2, 6, 8];

fn section(cache: &str, window: Option<i64>, layers: usize, more: &str) -> String {
    let window = window.map_or(String::new(), |window| format!("window: {window},"));
    let [n, kv, dim, v_dim] = HEADS;
    format!("
d_model: 24
n_layers: {layers}
vocab_size: 50
meta_tokens: {META}
embedding: token
norm: rms_norm
head: language
block_pattern:
  kind: parallel
  {more}
  layer:
    mixers:
      - {{ kind: attention, n_heads: {n}, n_kv_heads: {kv}, head_dim: {dim}, v_head_dim: {v_dim}, {window} position: none,
          cache: {cache}, cache_group: {GROUP}, cache_recent: {RECENT} }}
")
}

fn build(yaml: &str, kind: Kind) -> Model {
    let model = hymba_tests::model(yaml, kind, 7);
    let _guard = NoGrad::new();
    for parameter in model.parameters() {
        // Larger than the initialisation, so that the softmax is not flat.
        if parameter.plan.shape.len() == 2 && parameter.plan.weight_decay {
            let _ = parameter.tensor.shallow_clone().multiply_scalar_(8.0);
        }
    }
    model
}

fn tokens(n: i64, seed: i64) -> Vec<i64> {
    (0..n).map(|i| (i * i * 7 + i * 13 + seed * 31) % 50).collect()
}

fn rows(rows: &[Vec<i64>]) -> Tensor {
    Tensor::stack(&rows.iter().map(|row| Tensor::from_slice(row)).collect::<Vec<_>>(), 0)
}

fn chunks(total: i64, size: i64) -> Vec<i64> {
    (0..total).step_by(size as usize).map(|start| size.min(total - start)).collect()
}

/// A matrix `[tokens, channels]` in memory.
type Matrix = Vec<Vec<f64>>;

fn matrix(tensor: &Tensor) -> Matrix {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

/// Numbers that share a scale, as they are read back.
fn read_back(numbers: &[f64], levels: f64) -> Vec<f64> {
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let scale = (numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least) / levels;
    numbers.iter().map(|x| least + ((x - least) / scale).round_ties_even() * scale).collect()
}

/// What a document's calls see of its first `formed` tokens: keys by channel in groups, values by token.
fn as_codes(k: &Matrix, v: &Matrix, formed: usize, levels: f64) -> (Matrix, Matrix) {
    let (mut k, mut v) = (k.clone(), v.clone());
    for group in k[..formed].chunks_mut(GROUP as usize) {
        for channel in 0..group[0].len() {
            let numbers: Vec<f64> = group.iter().map(|key| key[channel]).collect();
            for (key, number) in group.iter_mut().zip(read_back(&numbers, levels)) {
                key[channel] = number;
            }
        }
    }
    for value in &mut v[..formed] {
        *value = read_back(value, levels);
    }
    (k, v)
}

/// Attention with one head of a document in calls of the given lengths: `q`, `k`, `v` of its text, `meta` keys and
/// values; the codes have `levels` steps, or there are none.
fn one_head(
    [q, k, v]: [&Matrix; 3],
    [meta_k, meta_v]: [&Matrix; 2],
    calls: &[i64],
    window: Option<i64>,
    levels: Option<f64>,
) -> Matrix {
    let (mut outputs, mut start) = (Vec::new(), 0);
    for &length in calls {
        let formed = (start - RECENT).max(0) / GROUP * GROUP;
        let (k, v) =
            levels.map_or_else(|| (k.clone(), v.clone()), |levels| as_codes(k, v, formed as usize, levels));
        for t in start..start + length {
            let first = window.map_or(0, |window| (t + 1 - window).max(0)) as usize;
            let keys = meta_k.iter().chain(&k[first..=t as usize]);
            let values: Vec<_> = meta_v.iter().chain(&v[first..=t as usize]).collect();
            let query = &q[t as usize];
            let dot = |key: &Vec<f64>| {
                key.iter().zip(query).map(|(a, b)| a * b).sum::<f64>() / (HEADS[2] as f64).sqrt()
            };
            let weights: Vec<f64> = keys.map(|key| dot(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mean =
                |channel: usize| weights.iter().zip(&values).map(|(w, v)| w * v[channel]).sum::<f64>() / sum;
            outputs.push((0..HEADS[3] as usize).map(mean).collect());
        }
        start += length;
    }
    outputs
}

/// Queries, keys and values of a layer's slices `[time, rows]`, by head.
fn heads_of(slices: &Tensor, at: i64, n: i64, dim: i64) -> Vec<Matrix> {
    (0..n).map(|head| matrix(&slices.narrow(1, at + head * dim, dim))).collect()
}

/// Attention of a document in calls, `[time, heads * v_head_dim]`: queries from `asks`, keys and values from `makes`,
/// the in-projections `[time, rows]` of the layer that asks and of the one that made them.
fn attention(
    initial: &ModelState,
    [asks, makes]: [&Tensor; 2],
    calls: &[i64],
    window: Option<i64>,
    levels: Option<f64>,
) -> Tensor {
    let [n, kv, dim, v_dim] = HEADS;
    let q = heads_of(asks, 0, n, dim);
    let (k, v) = (heads_of(makes, n * dim, kv, dim), heads_of(makes, (n + kv) * dim, kv, v_dim));
    let meta = |name: &str| -> Vec<Matrix> {
        let meta = initial.layers[0][0].get(name).unwrap().get(0);
        (0..kv).map(|head| matrix(&meta.get(head))).collect()
    };
    let (meta_k, meta_v) = (meta("meta_k"), meta("meta_v"));
    let heads: Vec<Tensor> = (0..n as usize)
        .map(|head| {
            let group = head / (n / kv) as usize;
            let y = one_head(
                [&q[head], &k[group], &v[group]],
                [&meta_k[group], &meta_v[group]],
                calls,
                window,
                levels,
            );
            Tensor::from_slice(&y.concat()).view([-1, v_dim])
        })
        .collect();
    Tensor::cat(&heads, 1)
}

/// A call of a batch: tokens of each row with padding, and what the attention of every layer read and gave.
struct Observed {
    slices: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

/// One call; the slices and outputs of every layer come with padding at the end of each row.
fn call(
    model: &Model,
    ids: &Tensor,
    state: &ModelState,
    initial: &ModelState,
    input: SpanInput<'_>,
) -> (Observed, ModelState) {
    let taps = Taps::default();
    let (_, after) = model.forward_observed(ids, state, initial, input, Observers::taps(&taps)).unwrap();
    let all = |name: &str| {
        let layers = 0..model.plan().layers.len();
        layers.map(|layer| taps.get(&format!("layers.{layer}.{name}")).unwrap()).collect()
    };
    (Observed { slices: all("in_proj"), outputs: all("branch.attention") }, after)
}

const CACHES: [(&str, Option<f64>); 3] = [("full", None), ("int8", Some(255.0)), ("int4", Some(15.0))];

#[test]
fn calls_see_older_tokens_as_the_definition_says() {
    let _guard = NoGrad::new();
    let ids = rows(&[tokens(40, 1), tokens(40, 2)]);
    for (cache, levels) in CACHES {
        for window in [None, Some(6), Some(9), Some(14)] {
            let model = build(&section(cache, window, 1, ""), Kind::Double);
            let initial = model.initial_state(false).unwrap();
            for calls in [chunks(40, 1), chunks(40, 7), vec![40], vec![5, 0, 1, 0, 20, 14], vec![22, 1, 17]] {
                let (mut state, mut start) = (initial.share(), 0);
                let (mut slices, mut outputs) = (Vec::new(), Vec::new());
                for &length in &calls {
                    let chunk = ids.narrow(1, start, length);
                    let (mut seen, next) = call(&model, &chunk, &state, &initial, SpanInput::default());
                    slices.push(seen.slices.remove(0));
                    outputs.push(seen.outputs.remove(0));
                    (state, start) = (next, start + length);
                }
                let (slices, outputs) = (Tensor::cat(&slices, 1), Tensor::cat(&outputs, 1));
                for row in 0..2 {
                    let slices = slices.get(row);
                    let expected = attention(&initial, [&slices, &slices], &calls, window, levels);
                    let error = max_difference(&outputs.get(row), &expected);
                    assert!(error < 1e-10, "{cache} {window:?} {calls:?}, row {row}: {error:e}");
                }
            }
        }
    }
}

/// Reproducible dice.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// One row's running document: its slices and outputs so far, call by call.
#[derive(Default)]
struct Running {
    calls: Vec<i64>,
    slices: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

/// Rows with lengths, padding and documents of their own: each document is as if it were alone, in calls of its own.
#[test]
fn every_row_and_every_document_has_groups_of_its_own() {
    let _guard = NoGrad::new();
    let mut checked = 0;
    for (seed, window) in [(1, None), (2, Some(9)), (3, Some(14)), (4, None), (5, Some(6))] {
        for (cache, levels) in CACHES {
            let model = build(&section(cache, window, 1, ""), Kind::Double);
            let initial = model.initial_state(false).unwrap();
            let (mut dice, batch) = (Dice(seed), 3);
            let mut state = initial.share();
            let mut running: Vec<Running> = (0..batch).map(|_| Running::default()).collect();
            let check = |document: &Running| {
                let slices = Tensor::cat(&document.slices, 0);
                let expected = attention(&initial, [&slices, &slices], &document.calls, window, levels);
                let error = max_difference(&Tensor::cat(&document.outputs, 0), &expected);
                assert!(error < 1e-10, "{cache} {window:?} {:?}: {error:e}", document.calls);
            };
            for turn in 0..24 {
                // Plain calls first and in between; then padding anywhere, and documents that begin.
                let plain = turn < 3 || turn % 5 == 4;
                let time = [1, 1, 2, 7, 13][dice.below(5) as usize];
                let flags = |dice: &mut Dice, one_in: u64| -> Vec<bool> {
                    (0..batch * time).map(|_| dice.below(one_in) == 0).collect()
                };
                let shape = [batch, time];
                let ids =
                    Tensor::from_slice(&(0..batch * time).map(|_| dice.below(50) as i64).collect::<Vec<_>>());
                let valid: Vec<bool> = flags(&mut dice, 4).iter().map(|padding| !padding).collect();
                let resets = flags(&mut dice, 25);
                let (valid_mask, reset_mask) =
                    (Tensor::from_slice(&valid).view(shape), Tensor::from_slice(&resets).view(shape));
                let input = if plain {
                    SpanInput::default()
                } else {
                    SpanInput { valid: Some(&valid_mask), resets: Some(&reset_mask), training: false }
                };
                let (seen, next) = call(&model, &ids.view(shape), &state, &initial, input);
                state = next;
                for row in 0..batch {
                    let document = &mut running[row as usize];
                    let (mut at, mut length) = (0, 0);
                    for i in 0..time {
                        let flag = (row * time + i) as usize;
                        if !plain && !valid[flag] {
                            continue;
                        }
                        if !plain && resets[flag] {
                            document.calls.push(length);
                            if !document.slices.is_empty() {
                                check(document);
                                checked += 1;
                            }
                            (*document, length) = (Running::default(), 0);
                        }
                        document.slices.push(seen.slices[0].get(row).narrow(0, at, 1));
                        document.outputs.push(seen.outputs[0].get(row).narrow(0, at, 1));
                        (at, length) = (at + 1, length + 1);
                    }
                    document.calls.push(length);
                }
            }
            running.iter().for_each(&check);
            // Room for the longest row there could be, and no more.
            if cache != "full" {
                let total: i64 = 24 * 13;
                let attention = &state.layers[0][0];
                let most = window.map_or(total, |window| window - RECENT + GROUP) / GROUP;
                if let Some(codes) = attention.find("k_codes") {
                    assert!(codes.size()[2] <= most, "{:?}", codes.size());
                    assert!(attention.get("k").unwrap().size()[2] <= RECENT + 2 * GROUP);
                }
            }
        }
    }
    assert!(checked > 100, "{checked} documents");
}

fn planned(plan: &ModelPlan, state: &ModelState, text: i64, kind: Kind, what: &str) {
    for (layer, mixer, planned) in plan.states() {
        let index = plan.layers[layer].mixers.iter().position(|m| m.name == mixer).unwrap();
        let got = state.layers[layer][index].get(&planned.name).unwrap();
        let name = &planned.name;
        assert_eq!(
            got.numel() as i64,
            planned.elements(plan.meta_tokens, text),
            "{what}: {name} {:?}",
            got.size()
        );
        assert_eq!(got.kind(), planned.kind.under(kind), "{what}: {name}");
    }
    assert_eq!(state.bytes(), plan.state_bytes(text, kind), "{what}");
}

#[test]
fn the_state_takes_the_bytes_of_the_plan() {
    let _guard = NoGrad::new();
    for kind in [Kind::Float, Kind::BFloat16] {
        for (cache, _) in CACHES {
            for window in [None, Some(3), Some(6), Some(9), Some(14), Some(15)] {
                let model = build(&section(cache, window, 2, ""), kind);
                let initial = model.initial_state(false).unwrap();
                for size in [1, 5, 17] {
                    let (mut state, mut text) = (initial.share(), 0);
                    planned(model.plan(), &state, 0, kind, cache);
                    for length in chunks(51, size) {
                        let ids = rows(&[tokens(length, text)]);
                        state = model.forward(&ids, &state, &initial, SpanInput::default()).unwrap().1;
                        text += length;
                        planned(
                            model.plan(),
                            &state,
                            text,
                            kind,
                            &format!("{cache} {window:?} after {text} in {size}"),
                        );
                    }
                }
            }
        }
    }
    // The totals of a plan count activations in two bytes.
    let plan = hymba_tests::plan(&section("int4", None, 2, ""));
    let totals = plan.totals(1000);
    assert_eq!(totals.state_bytes, plan.state_bytes(1000, Kind::BFloat16));
    let (near, far) =
        (plan.state_bytes(1000, Kind::BFloat16), plan.state_bytes(1000 + 100 * GROUP, Kind::BFloat16));
    assert_eq!((far - near).div_ceil(100 * GROUP as u64), totals.state_bytes_per_token);
}

/// Layer 0 reads nothing that depends on the cache: its groups are the same codes whatever the calls.
#[test]
fn codes_do_not_depend_on_the_calls() {
    let _guard = NoGrad::new();
    let model = build(&section("int8", None, 1, ""), Kind::Double);
    let initial = model.initial_state(false).unwrap();
    let ids = rows(&[tokens(40, 1)]);
    let run = |calls: &[i64]| {
        let (mut state, mut start) = (initial.share(), 0);
        for &length in calls {
            state = model
                .forward(&ids.narrow(1, start, length), &state, &initial, SpanInput::default())
                .unwrap()
                .1;
            start += length;
        }
        state
    };
    let expected = run(&[40]);
    for calls in [chunks(40, 1), chunks(40, 3), vec![1, 38, 1], vec![0, 11, 0, 29]] {
        let state = run(&calls);
        for (name, tensor) in state.layers[0][0].iter() {
            let error = max_difference(tensor, expected.layers[0][0].get(name).unwrap());
            let most = if tensor.kind() == Kind::Double { 1e-12 } else { 0.0 };
            assert!(error <= most, "{calls:?}: {name} differs by {error:e}");
        }
    }
}

#[test]
fn training_and_one_full_call_know_of_no_codes() {
    let ids = rows(&[tokens(40, 1), tokens(40, 2)]);
    let resets: Vec<bool> = (0..80).map(|i| [9, 30, 55].contains(&i)).collect();
    let resets = Tensor::from_slice(&resets).view([2, 40]);
    let outcome = |cache: &str, training: bool, calls: &[i64]| {
        let model = build(&section(cache, None, 2, ""), Kind::Double);
        let initial = model.initial_state(training).unwrap();
        let (mut state, mut outputs, mut start) = (initial.share(), Vec::new(), 0);
        for &length in calls {
            let resets = resets.narrow(1, start, length);
            let input = SpanInput { resets: Some(&resets), training, ..SpanInput::default() };
            let (hidden, next) =
                model.forward(&ids.narrow(1, start, length), &state, &initial, input).unwrap();
            outputs.push(hidden);
            (state, start) = (next, start + length);
        }
        let hidden = Tensor::cat(&outputs, 1);
        hidden.square().sum(Kind::Double).backward();
        let gradients = model.parameters().iter().map(|p| p.tensor.grad()).filter(Tensor::defined);
        std::iter::once(hidden.detach()).chain(gradients).collect::<Vec<_>>()
    };
    // Split in two, training remembers all as it is and gradients flow through.
    for (training, calls) in [(false, vec![40]), (true, vec![40]), (true, vec![25, 15])] {
        let (full, codes) = (outcome("full", training, &calls), outcome("int4", training, &calls));
        assert!(full.len() > 5);
        // With room for borders anywhere, sums run over more zeros, in another order.
        let most = if calls.len() == 1 { 0.0 } else { 1e-12 };
        for (full, codes) in full.iter().zip(&codes) {
            let error = max_difference(codes, full);
            assert!(error <= most, "training {training} {calls:?}: {error:e}");
        }
    }
}

/// What was remembered in training becomes codes in a later call.
#[test]
fn a_state_of_training_goes_on_in_inference() {
    let _guard = NoGrad::new();
    let model = build(&section("int8", None, 1, ""), Kind::Double);
    let ids = rows(&[tokens(30, 1)]);
    let initial = model.initial_state(false).unwrap();
    let train = SpanInput { training: true, ..SpanInput::default() };
    let (_, state) = model.forward(&ids, &initial, &initial, train).unwrap();
    let (_, state) = model.forward(&rows(&[tokens(3, 2)]), &state, &initial, SpanInput::default()).unwrap();
    planned(model.plan(), &state, 33, Kind::Double, "after training");
}

#[test]
fn outputs_stay_near_those_of_the_full_cache() {
    let _guard = NoGrad::new();
    let ids = rows(&[tokens(60, 1), tokens(60, 2)]);
    let outputs = |cache: &str| {
        let model = build(&section(cache, None, 3, ""), Kind::Double);
        let initial = model.initial_state(false).unwrap();
        let (mut state, mut outputs) = (initial.share(), Vec::new());
        for i in 0..60 {
            let (hidden, next) =
                model.forward(&ids.narrow(1, i, 1), &state, &initial, SpanInput::default()).unwrap();
            outputs.push(hidden);
            state = next;
        }
        Tensor::cat(&outputs, 1)
    };
    let full = outputs("full");
    let (eight, four) = (relative_rms(&outputs("int8"), &full), relative_rms(&outputs("int4"), &full));
    println!("relative RMS error of three layers: int8 {eight:.2e}, int4 {four:.2e}");
    assert!(0.0 < eight && eight < 0.01 && eight < four && four < 0.15, "{eight:e} {four:e}");
}

/// Rows are swapped and repeated, and go on as if they had been alone.
#[test]
fn states_with_codes_are_values() {
    let _guard = NoGrad::new();
    let model = build(&section("int4", Some(14), 2, ""), Kind::Double);
    let initial = model.initial_state(false).unwrap();
    let step = |state: &ModelState, ids: &Tensor, valid: Option<&Tensor>| {
        model.forward(ids, state, &initial, SpanInput { valid, ..SpanInput::default() }).unwrap()
    };
    let (a, b, more) = (tokens(25, 1), tokens(25, 2), tokens(12, 3));
    // A padded batch, and both rows alone.
    let mut valid = vec![true; 50];
    valid[25 + 18..].fill(false);
    let valid = Tensor::from_slice(&valid).view([2, 25]);
    let (_, state) = step(&initial, &rows(&[a.clone(), b.clone()]), Some(&valid));
    let (_, wrong) = step(&state, &rows(&[more.clone(), more.clone()]), None);
    drop(wrong);
    let mut picked = state.select(&Tensor::from_slice(&[1_i64, 0, 1]), 2).unwrap();
    let (_, mut a_state) = step(&initial, &rows(&[a]), None);
    let (_, mut b_state) = step(&initial, &rows(&[b[..18].to_vec()]), None);
    for token in more {
        let one = |n: usize| rows(&vec![vec![token]; n]);
        let (got, next) = step(&picked, &one(3), None);
        let (a, a_next) = step(&a_state, &one(1), None);
        let (b, b_next) = step(&b_state, &one(1), None);
        let error = max_difference(&got, &Tensor::cat(&[&b, &a, &b], 0));
        assert!(error < 1e-10, "{error:e}");
        (picked, a_state, b_state) = (next, a_next, b_next);
    }
}

#[test]
fn a_consumer_sees_the_codes_of_its_producer() {
    let _guard = NoGrad::new();
    let sharing = "kv_sharing: { groups: [[0, 1]] }";
    let model = build(&section("int4", Some(14), 2, sharing), Kind::Double);
    assert!(model.initial_state(false).unwrap().layers[1][0].find("k_codes").is_none());
    let initial = model.initial_state(false).unwrap();
    let (ids, calls) = (rows(&[tokens(40, 1)]), chunks(40, 3));
    let (mut state, mut start, mut all) = (initial.share(), 0, Vec::new());
    for &length in &calls {
        let (seen, next) =
            call(&model, &ids.narrow(1, start, length), &state, &initial, SpanInput::default());
        all.push(seen);
        (state, start) = (next, start + length);
    }
    let join = |part: fn(&Observed) -> &Vec<Tensor>, layer: usize| {
        Tensor::cat(&all.iter().map(|seen| &part(seen)[layer]).collect::<Vec<_>>(), 1).get(0)
    };
    let makes = join(|seen| &seen.slices, 0);
    for layer in 0..2 {
        let asks = join(|seen| &seen.slices, layer);
        let expected = attention(&initial, [&asks, &makes], &calls, Some(14), Some(15.0));
        let error = max_difference(&join(|seen| &seen.outputs, layer), &expected);
        assert!(error < 1e-10, "layer {layer}: {error:e}");
    }
}

#[test]
fn the_plan_says_what_it_exempts_and_refuses() {
    let exempt = |yaml: &str| {
        hymba_tests::plan(yaml).exemptions().iter().any(|e| e.to_string().contains("codes of eight bits"))
    };
    assert!(exempt(&section("int8", None, 1, "")));
    assert!(exempt(&section("int8", Some(6), 1, "")));
    // Nothing is older than the newest tokens that stay as they are.
    assert!(!exempt(&section("int8", Some(RECENT), 1, "")));
    assert!(!exempt(&section("full", None, 1, "")));
    let odd = section("int4", None, 1, "").replace("v_head_dim: 8", "v_head_dim: 7");
    let config: serde_json::Value = serde_yaml::from_str(&odd).unwrap();
    let config: hymba_plus::model::ModelConfig = hymba_plus::registry::parse_config(config).unwrap();
    let findings = ModelPlan::resolve(&config, None).unwrap_err();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].path, "model.block_pattern.layer.mixers[0].cache");
    assert!(findings[0].message.contains("`v_head_dim` is 7"), "{}", findings[0].message);
}
