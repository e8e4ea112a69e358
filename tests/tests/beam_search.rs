//! Beam search against an exhaustive search, and against transformers on the same weights.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::{
    generate::{Beams, EarlyStopping, Finish, GenerateOptions, Sampling, Sequence, beam_search, generate},
    model::Model,
    state::SpanInput,
};
use tch::{Kind, Tensor};
use torch_bridge::guards::NoGrad;

const VOCABULARY: i64 = 5;

/// A model with a peaked distribution over few tokens, with states of both kinds.
fn small() -> Model {
    let section = format!(
        "
d_model: 16
n_layers: 2
vocab_size: {VOCABULARY}
meta_tokens: 2
initializer_range: 0.4
embedding: token
norm: rms_norm
head: language
block_pattern:
  kind: parallel
  layer:
    mixers:
      - {{ kind: attention, n_heads: 2, window: 3, position: rope }}
      - {{ kind: mamba, d_inner: 16, d_state: 4 }}
    fusion: {{ kind: mean, norm: rms_norm }}
    channel_mixer: none
"
    );
    hymba_tests::model(&section, Kind::Double, 5)
}

/// Log-probabilities of the next token.
fn next(model: &Model, ids: &[i64]) -> Vec<f64> {
    let _guard = NoGrad::new();
    let initial = model.initial_state(false).unwrap();
    let ids = Tensor::from_slice(ids).unsqueeze(0);
    let (hidden, _) = model.forward(&ids, &initial, &initial, SpanInput::default()).unwrap();
    let logits = model.head(&hidden.narrow(1, hidden.size()[1] - 1, 1)).unwrap();
    Vec::try_from(logits.reshape([-1]).log_softmax(-1, Kind::Double)).unwrap()
}

/// Every complete text after a prompt: its tokens without the stop token, its log-probability, its length with it.
fn everything(model: &Model, prompt: &[i64], stop: &[i64], most: usize) -> Vec<(Vec<i64>, f64, usize)> {
    let (mut open, mut complete) = (vec![(Vec::new(), 0.0)], Vec::new());
    for length in 1..=most {
        let mut longer = Vec::new();
        for (tokens, sum) in open {
            for (token, logprob) in next(model, &[prompt, &tokens].concat()).into_iter().enumerate() {
                let (token, sum) = (token as i64, sum + logprob);
                if stop.contains(&token) {
                    complete.push((tokens.clone(), sum, length));
                } else if length == most {
                    complete.push(([&tokens[..], &[token]].concat(), sum, length));
                } else {
                    longer.push(([&tokens[..], &[token]].concat(), sum));
                }
            }
        }
        open = longer;
    }
    complete
}

fn options(num_beams: usize, length_penalty: f64, early_stopping: EarlyStopping) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: 4,
        num_return_sequences: num_beams.min(6),
        beams: Beams { num_beams, length_penalty, early_stopping },
        ..GenerateOptions::default()
    }
}

#[test]
fn enough_beams_find_the_best_texts_of_all() {
    let (model, prompts) = (small(), [vec![0, 3, 1], vec![2], vec![4, 4]]);
    let (mut firsts, mut stopped) = (std::collections::BTreeSet::new(), 0);
    for stop_tokens in [vec![], vec![1], vec![0, 3]] {
        for length_penalty in [1.0, 0.0, 2.0, -0.5] {
            // So many beams that no beginning is ever dropped: 4 tokens have at most 5^3 beginnings.
            let options = GenerateOptions {
                stop_tokens: stop_tokens.clone(),
                ..options(700, length_penalty, EarlyStopping::Never)
            };
            let found = generate(&model, &prompts, &options).unwrap();
            assert_eq!(found.len(), prompts.len() * 6);
            for (prompt, found) in prompts.iter().zip(found.chunks(6)) {
                let mut all = everything(&model, prompt, &stop_tokens, 4);
                let score =
                    |(_, sum, length): &(Vec<i64>, f64, usize)| sum / (*length as f64).powf(length_penalty);
                all.sort_by(|a, b| score(b).total_cmp(&score(a)));
                for (found, expected) in found.iter().zip(&all) {
                    assert_eq!(found.tokens, expected.0, "{length_penalty} {stop_tokens:?}");
                    assert!((found.score.unwrap() - score(expected)).abs() < 1e-5, "{found:?} {expected:?}");
                    let is_stopped =
                        matches!(found.finish, Finish::StopToken(token) if stop_tokens.contains(&token));
                    assert_eq!(is_stopped, expected.0.len() < expected.2);
                    stopped += usize::from(is_stopped);
                }
                firsts.insert(found[0].tokens.clone());
            }
        }
    }
    assert!(stopped > 20 && firsts.len() > 5, "{stopped} {firsts:?}");
}

/// The rules on one page, without states or batches, one prompt at a time.
fn by_the_rules(model: &Model, prompt: &[i64], options: &GenerateOptions) -> Vec<(Vec<i64>, f64)> {
    let Beams { num_beams, length_penalty, early_stopping } = options.beams.clone();
    let mut running: Vec<(Vec<i64>, f64)> = vec![(Vec::new(), 0.0)];
    let mut complete: Vec<(Vec<i64>, f64)> = Vec::new();
    let most = options.max_new_tokens;
    let score = |sum: f64, length: usize| sum / (length as f64).powf(length_penalty);
    for length in 1..=most {
        let mut longer = Vec::new();
        for (tokens, sum) in &running {
            let logprobs = next(model, &[prompt, tokens].concat());
            longer.extend(
                logprobs
                    .iter()
                    .enumerate()
                    .map(|(token, p)| ([&tokens[..], &[token as i64]].concat(), sum + p)),
            );
        }
        longer.sort_by(|a, b| b.1.total_cmp(&a.1));
        let ends = |tokens: &[i64]| options.stop_tokens.contains(tokens.last().unwrap()) || length == most;
        for (tokens, sum) in longer.iter().take(num_beams).filter(|(tokens, _)| ends(tokens)) {
            complete.push((tokens.clone(), score(*sum, length)));
        }
        complete.sort_by(|a, b| b.1.total_cmp(&a.1));
        complete.truncate(num_beams);
        running = longer.into_iter().filter(|(tokens, _)| !ends(tokens)).take(num_beams).collect();
        let Some((_, best)) = running.first() else { break };
        let reachable = match early_stopping {
            EarlyStopping::Never if length_penalty > 0.0 => score(*best, most),
            _ => score(*best, length),
        };
        let is_full = complete.len() == num_beams;
        if is_full && (early_stopping == EarlyStopping::True || reachable <= complete.last().unwrap().1) {
            break;
        }
    }
    for (tokens, _) in &mut complete {
        if options.stop_tokens.contains(tokens.last().unwrap()) {
            tokens.pop();
        }
    }
    complete
}

#[test]
fn few_beams_follow_the_rules_in_any_batch() {
    let (model, prompts) = (small(), [vec![0, 3, 1, 1, 2], vec![2], vec![4, 4], vec![1, 0]]);
    for num_beams in [2, 3, 7] {
        for early_stopping in [EarlyStopping::True, EarlyStopping::False, EarlyStopping::Never] {
            for (length_penalty, stop_tokens) in
                [(1.0, vec![1]), (0.0, vec![0, 2]), (1.5, vec![3]), (1.0, vec![])]
            {
                let options = GenerateOptions {
                    max_new_tokens: 9,
                    stop_tokens,
                    num_return_sequences: num_beams,
                    ..options(num_beams, length_penalty, early_stopping)
                };
                let found = generate(&model, &prompts, &options).unwrap();
                for (i, prompt) in prompts.iter().enumerate() {
                    let expected = by_the_rules(&model, prompt, &options);
                    let found: Vec<&Sequence> = found.iter().filter(|found| found.prompt == i).collect();
                    assert_eq!(found.len(), expected.len());
                    for (found, (tokens, score)) in found.iter().zip(&expected) {
                        assert_eq!(&found.tokens, tokens, "{options:?}");
                        assert!((found.score.unwrap() - score).abs() < 1e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn a_caller_can_complete_texts() {
    let model = small();
    let options =
        GenerateOptions { max_new_tokens: 8, logprobs: Some(1), ..options(4, 0.0, EarlyStopping::True) };
    let found = beam_search(&model, &[vec![0]], &options, |tokens| tokens.ends_with(&[2, 4])).unwrap();
    let ended: Vec<&Sequence> = found.iter().filter(|found| found.finish == Finish::Listener).collect();
    assert!(!ended.is_empty(), "{found:?}");
    for found in &found {
        let at = found.tokens.windows(2).position(|pair| pair == [2, 4]);
        assert_eq!(at.is_some(), found.finish == Finish::Listener);
        assert!(at.is_none_or(|at| at + 2 == found.tokens.len()));
        // Without a length penalty the score is the sum of the log-probabilities.
        let sum: f64 = found.logprobs.iter().map(|token| f64::from(token.logprob)).sum();
        assert!((sum - found.score.unwrap()).abs() < 1e-5);
        assert!(found.logprobs.iter().map(|token| token.token).eq(found.tokens.iter().copied()));
    }
}

#[test]
fn a_search_with_few_continuations_gives_what_there_is() {
    let model = small();
    // No token twice: 4 are left after the prompt, 24 texts of 4 tokens.
    let options = GenerateOptions {
        max_new_tokens: 6,
        sampling: Sampling { no_repeat_ngram: Some(1), ..Sampling::default() },
        num_return_sequences: 30,
        ..options(30, 1.0, EarlyStopping::False)
    };
    let found = generate(&model, &[vec![0]], &options).unwrap();
    assert_eq!(found.len(), 24);
    assert!(found.iter().all(|found| found.tokens.len() == 4 && found.finish == Finish::NoToken));
}
