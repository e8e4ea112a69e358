//! Generation against its definition: for each token one full pass over everything so far, one sequence at a time.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::{
    generate::{
        Finish, GenerateOptions, History, Listener, Sampler, Sampling, Scores, Sequence, Step, fixed,
        generate, generate_streaming, processors,
    },
    model::Model,
    state::{ModelState, SpanInput, State},
};
use hymba_tests::official;
use tch::{Kind, Tensor};
use torch_bridge::guards::NoGrad;

/// Attention with a window, Mamba, shared keys, meta tokens: everything that has a state.
fn hybrid() -> Model {
    let model = hymba_tests::model(&official::model_section("kqnorm").to_string(), Kind::Double, 3);
    let _guard = NoGrad::new();
    for parameter in model.parameters() {
        if parameter.plan.shape.len() == 2 && parameter.plan.weight_decay {
            let _ = parameter.tensor.shallow_clone().multiply_scalar_(5.0);
        }
    }
    model
}

fn transformer(max_positions: i64) -> Model {
    let section = format!(
        "
d_model: 16
n_layers: 2
vocab_size: 23
max_positions: {max_positions}
embedding: token
norm: rms_norm
head: language
block_pattern:
  kind: parallel
  layer:
    mixers: [{{ kind: attention, n_heads: 2, position: rope }}]
    fusion: none
    channel_mixer: {{ kind: swiglu, d_hidden: 24 }}
"
    );
    hymba_tests::model(&section, Kind::Double, 1)
}

fn prompts() -> Vec<Vec<i64>> {
    let prompt = |n: i64, seed: i64| (0..n).map(|i| (i * i * 7 + i * 13 + seed * 31) % 97).collect();
    vec![prompt(1, 1), prompt(13, 2), prompt(4, 3), prompt(9, 4), prompt(13, 5)]
}

fn logits(model: &Model, ids: &[i64]) -> Vec<f32> {
    let _guard = NoGrad::new();
    let initial = model.initial_state(false).unwrap();
    let ids = Tensor::from_slice(ids).unsqueeze(0);
    let (hidden, _) = model.forward(&ids, &initial, &initial, SpanInput::default()).unwrap();
    let last = model.head(&hidden.narrow(1, hidden.size()[1] - 1, 1)).unwrap();
    Vec::try_from(last.reshape([-1]).to_kind(Kind::Float)).unwrap()
}

/// The definition.
fn alone(model: &Model, prompt: &[i64], seed: u64, options: &GenerateOptions) -> (Vec<i64>, Vec<f32>) {
    let (list, mut sampler, mut history) = (processors(options), Sampler::new(seed), History::new(prompt));
    let mut logprobs = Vec::new();
    while history.new_tokens().len() < options.max_new_tokens {
        let logits = logits(model, history.tokens());
        let mut scores = Scores::new(&logits);
        for processor in &list {
            processor.process(&history, &mut scores);
        }
        let greedy = options.sampling.is_greedy();
        let token = if greedy { scores.best() } else { sampler.draw(&scores) }.unwrap();
        if options.stop_tokens.contains(&token) {
            break;
        }
        history.push(token);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        logprobs.push((f64::from(logits[token as usize]) - sum.ln()) as f32);
    }
    (history.new_tokens().to_vec(), logprobs)
}

fn settings() -> Vec<GenerateOptions> {
    let plain = || GenerateOptions { max_new_tokens: 10, seed: 11, ..GenerateOptions::default() };
    let drawn = Sampling { temperature: 0.7, top_k: Some(40), top_p: Some(0.95), ..Sampling::default() };
    let penalised = Sampling {
        repetition_penalty: 1.4,
        frequency_penalty: 0.3,
        no_repeat_ngram: Some(2),
        min_p: Some(0.01),
        ..Sampling::default()
    };
    // So many stop tokens that rows end at different times and the batch shrinks.
    let stop_tokens: Vec<i64> = (0..97).filter(|id| id % 6 == 1).collect();
    vec![
        GenerateOptions { sampling: Sampling::greedy(), ..plain() },
        GenerateOptions { sampling: drawn.clone(), logprobs: Some(0), ..plain() },
        GenerateOptions { stop_tokens: stop_tokens.clone(), sampling: drawn, ..plain() },
        GenerateOptions { stop_tokens, sampling: penalised, min_new_tokens: 3, ..plain() },
    ]
}

#[test]
fn a_batch_gives_what_each_sequence_gives_alone() {
    let (model, prompts) = (hybrid(), prompts());
    let mut lengths = std::collections::BTreeSet::new();
    for options in settings() {
        for (copies, chunk) in [(1, None), (1, Some(1)), (2, Some(5))] {
            let options =
                GenerateOptions { num_return_sequences: copies, prefill_chunk: chunk, ..options.clone() };
            let sequences = generate(&model, &prompts, &options).unwrap();
            assert_eq!(sequences.len(), prompts.len() * copies);
            for (i, sequence) in sequences.iter().enumerate() {
                assert_eq!((sequence.prompt, sequence.seed), (i / copies, 11 + i as u64));
                let (tokens, logprobs) = alone(&model, &prompts[i / copies], sequence.seed, &options);
                assert_eq!(sequence.tokens, tokens, "sequence {i} of {options:?}");
                lengths.insert(tokens.len());
                if options.logprobs.is_some() {
                    let ours: Vec<f32> = sequence.logprobs.iter().map(|token| token.logprob).collect();
                    assert!(ours.iter().zip(&logprobs).all(|(a, b)| (a - b).abs() < 1e-5), "{ours:?}");
                    assert!(sequence.logprobs.iter().map(|token| token.token).eq(tokens));
                }
            }
        }
    }
    assert!(lengths.len() > 4, "sequences end at different times: {lengths:?}");
}

#[test]
fn what_stands_beside_a_sequence_does_not_matter() {
    let (model, prompts, options) = (hybrid(), prompts(), &settings()[2]);
    let all = generate(&model, &prompts, options).unwrap();
    for (i, prompt) in prompts.iter().enumerate() {
        let options = GenerateOptions { seed: options.seed + i as u64, ..options.clone() };
        let beside = [prompt.clone(), vec![5; 30], vec![7]];
        for batch in [&beside[..1], &beside[..]] {
            let sequence = generate(&model, batch, &options).unwrap().remove(0);
            assert_eq!((&sequence.tokens, sequence.finish), (&all[i].tokens, all[i].finish));
        }
    }
}

#[test]
fn alternatives_are_the_models_own() {
    let model = transformer(64);
    let options = GenerateOptions {
        max_new_tokens: 4,
        sampling: Sampling { repetition_penalty: 3.0, temperature: 0.2, ..Sampling::default() },
        logprobs: Some(5),
        ..GenerateOptions::default()
    };
    let sequence = generate(&model, &[vec![1, 2, 3]], &options).unwrap().remove(0);
    let mut so_far = vec![1, 2, 3];
    for report in &sequence.logprobs {
        let logits = logits(&model, &so_far);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let mut all: Vec<(i64, f32)> =
            logits.iter().zip(0..).map(|(&x, id)| (id, (f64::from(x) - sum.ln()) as f32)).collect();
        assert!((all[report.token as usize].1 - report.logprob).abs() < 1e-5);
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(report.top.len(), 5);
        for (ours, expected) in report.top.iter().zip(&all) {
            assert!(ours.0 == expected.0 && (ours.1 - expected.1).abs() < 1e-5, "{ours:?} {expected:?}");
        }
        so_far.push(report.token);
    }
}

/// Everything that a listener hears.
#[derive(Default)]
struct Ear {
    tokens: Vec<Vec<i64>>,
    ends: Vec<Option<Finish>>,
    most: usize,
}

impl Listener for Ear {
    fn token(&mut self, step: &Step<'_>) -> bool {
        assert!(self.ends[step.sequence].is_none(), "a token after the end");
        self.tokens[step.sequence].push(step.token);
        self.tokens[step.sequence].len() < self.most
    }

    fn end(&mut self, sequence: usize, finish: Finish) {
        assert!(self.ends[sequence].replace(finish).is_none(), "a second end");
    }
}

#[test]
fn a_listener_hears_everything_once_and_can_end_a_sequence() {
    let (model, prompts) = (hybrid(), prompts());
    for (options, most) in settings().into_iter().zip([100, 3, 100, 5]) {
        let n = prompts.len();
        let mut ear = Ear { tokens: vec![Vec::new(); n], ends: vec![None; n], most };
        let sequences = generate_streaming(&model, &prompts, &options, &mut ear).unwrap();
        for (i, sequence) in sequences.iter().enumerate() {
            assert_eq!((&ear.tokens[i], ear.ends[i]), (&sequence.tokens, Some(sequence.finish)));
            assert!(sequence.tokens.len() <= most);
            assert_eq!(sequence.finish == Finish::Listener, sequence.tokens.len() == most);
        }
        let nothing = GenerateOptions { max_new_tokens: 0, min_new_tokens: 0, ..options };
        let mut ear = Ear { tokens: vec![Vec::new(); n], ends: vec![None; n], most };
        generate_streaming(&model, &prompts, &nothing, &mut ear).unwrap();
        assert_eq!(ear.ends, [Some(Finish::MaxNewTokens); 5]);
    }
}

#[test]
fn a_sequence_ends_where_the_model_does() {
    let model = transformer(12);
    // The last token that the model reads has position 11; the one after it is not read.
    let prompts: Vec<Vec<i64>> = [12, 3, 7, 1].map(|n| vec![2; n]).to_vec();
    let options = |most: usize| GenerateOptions {
        max_new_tokens: most,
        sampling: Sampling::greedy(),
        ..GenerateOptions::default()
    };
    let found = |sequences: Vec<Sequence>| -> Vec<(usize, Finish)> {
        sequences.iter().map(|sequence| (sequence.tokens.len(), sequence.finish)).collect()
    };
    let lengths = found(generate(&model, &prompts, &options(8)).unwrap());
    let (cut, most) = (Finish::ModelLength, Finish::MaxNewTokens);
    assert_eq!(lengths, [(1, cut), (8, most), (6, cut), (8, most)]);
    let error = generate(&model, &[vec![1; 3], vec![1; 13]], &options(1)).unwrap_err().to_string();
    assert!(error.contains("prompt 1 has 13 tokens") && error.contains("made for 12"), "{error}");
    let error = generate(&model, &[vec![1], vec![]], &options(1)).unwrap_err().to_string();
    assert!(error.contains("prompt 1 is empty"), "{error}");
    let wrong = GenerateOptions { num_return_sequences: 0, ..options(1) };
    let error = generate(&model, &[vec![1]], &wrong).unwrap_err().to_string();
    assert!(error.contains("`num_return_sequences` must be 1 or more"), "{error}");
    assert_eq!(generate(&model, &[], &options(1)).unwrap(), []);
}

#[test]
fn a_sequence_without_a_token_left_ends() {
    let model = transformer(64);
    let options = GenerateOptions {
        max_new_tokens: 60,
        sampling: Sampling { no_repeat_ngram: Some(1), ..Sampling::default() },
        ..GenerateOptions::default()
    };
    let sequence = generate(&model, &[vec![0, 1]], &options).unwrap().remove(0);
    assert_eq!((sequence.tokens.len(), sequence.finish), (21, Finish::NoToken));
    let _guard = NoGrad::new();
    let _ = model.parameters().get("embedding.weight").unwrap().tensor.shallow_clone().fill_(f64::NAN);
    let error = generate(&model, &[vec![0]], &GenerateOptions::default()).unwrap_err().to_string();
    assert!(error.contains("NaN for every token"), "{error}");
}

/// A step on states of constant shape, written back in place, is the step on states that grow: with windows that are full
/// and not yet full, shared keys, rows of different lengths.
#[test]
fn states_of_constant_shape_give_the_same_logits() {
    let _guard = NoGrad::new();
    for model in [hybrid(), transformer(400)] {
        assert_eq!(fixed::obstacle(model.plan()), None);
        let initial = model.initial_state(false).unwrap();
        let vocab = model.plan().vocab_size.unwrap();
        let ids = (Tensor::arange(3 * 7, (Kind::Int64, tch::Device::Cpu)) * 5).remainder(vocab).view([3, 7]);
        let valid = Tensor::arange(7, (Kind::Int64, tch::Device::Cpu))
            .ge_tensor(&Tensor::from_slice(&[0_i64, 3, 5]).unsqueeze(1));
        let input = SpanInput { valid: Some(&valid), ..SpanInput::default() };
        let (_, mut growing) = model.forward(&ids, &initial, &initial, input).unwrap();
        let constant = fixed::padded(model.plan(), &growing, 3, 40).unwrap();
        let shapes = |state: &ModelState| -> Vec<Vec<i64>> {
            state.layers.iter().flatten().flat_map(State::iter).map(|(_, tensor)| tensor.size()).collect()
        };
        let before = shapes(&constant);
        for step in 0..30 {
            let next = Tensor::full([3, 1], (step * 11) % vocab, (Kind::Int64, tch::Device::Cpu));
            let (plain, after) = model.forward(&next, &growing, &initial, SpanInput::default()).unwrap();
            growing = after;
            let (ours, after) = model.forward(&next, &constant, &initial, SpanInput::default()).unwrap();
            fixed::write_back(model.plan(), &constant, &after).unwrap();
            let error = (ours - plain).abs().max().double_value(&[]);
            assert!(error < 1e-12, "step {step}: {error}");
        }
        assert_eq!(shapes(&constant), before);
    }
}
