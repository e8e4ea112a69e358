//! Text in, text out: prompts as tokens, tokens as text that ends where it should.

use hymba_plus::{
    generate::{
        Finish, GenerateOptions, Listener, Sequence, Step, StopStrings, beam_search, generate_streaming,
    },
    model::Model,
};
use serde_json::{Value, json};
use training::tokenizer::{StreamDecoder, Tokenizer, TokenizerError, chat::Chat};

use crate::context::StageError;

/// How texts are continued.
#[derive(Debug, Clone, PartialEq)]
pub struct TextOptions {
    /// How tokens are chosen; the tokenizer's stop tokens are added to its own.
    pub generate: GenerateOptions,
    /// Texts that end a sequence; what stands from there on is not given.
    pub stop: Vec<String>,
    /// Sequences (or beams) at a time.
    pub batch_size: usize,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { generate: GenerateOptions::default(), stop: Vec::new(), batch_size: 16 }
    }
}

/// What came of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedText {
    /// The new text.
    pub text: String,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    /// Its tokens: with a stop string, those that it came in too.
    pub sequence: Sequence,
}

impl GeneratedText {
    /// Whether it ended because the model is made for no longer text.
    pub fn is_cut(&self) -> bool {
        self.sequence.finish == Finish::ModelLength
    }

    /// Why it ended, as one word.
    pub fn finish(&self) -> &'static str {
        match self.sequence.finish {
            _ if self.stop_string.is_some() => "stop_string",
            Finish::StopToken(_) => "stop_token",
            Finish::MaxNewTokens => "max_new_tokens",
            Finish::ModelLength => "model_length",
            Finish::Listener => "closed",
            Finish::NoToken => "no_token",
        }
    }

    /// Everything about it as JSON.
    ///
    /// # Errors
    /// When a token cannot be decoded.
    pub fn to_json(&self, tokenizer: &Tokenizer) -> Result<Value, TokenizerError> {
        let sequence = &self.sequence;
        let mut object = json!({
            "prompt_index": sequence.prompt,
            "text": self.text,
            "token_ids": sequence.tokens,
            "finish": self.finish(),
            "seed": sequence.seed,
        });
        if let Some(stop) = &self.stop_string {
            object["stop_string"] = stop.as_str().into();
        }
        if let Some(score) = sequence.score {
            object["score"] = score.into();
        }
        if !sequence.logprobs.is_empty() {
            let one = |&(id, logprob): &(i64, f32)| -> Result<Value, TokenizerError> {
                let text = tokenizer.decode(&[id as u32])?;
                Ok(json!({ "token": text, "id": id, "logprob": logprob })) // lint: kind-name-ok: a key of the output
            };
            let tokens = sequence.logprobs.iter().map(|token| {
                let mut object = one(&(token.token, token.logprob))?;
                object["top"] = token.top.iter().map(one).collect::<Result<Value, _>>()?;
                Ok(object)
            });
            object["logprobs"] = tokens.collect::<Result<Value, TokenizerError>>()?;
        }
        Ok(object)
    }
}

/// What [`generate_text`] tells as it goes.
#[derive(Debug, Clone, Copy)]
pub enum TextEvent<'a> {
    /// Text of a sequence that is certain: pieces in order, never what a stop string takes away.
    Piece(usize, &'a str),
    /// A sequence that has ended, in the order of the prompts, once its batch is done.
    Done(&'a GeneratedText),
}

/// What a text continues.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// The beginning of a document.
    Text(String),
    /// A chat, which the tokenizer's template makes a text of.
    Chat(Chat),
}

impl Prompt {
    /// Its tokens.
    ///
    /// # Errors
    /// When the tokenizer fails, or has no template that takes the chat.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<i64>, TokenizerError> {
        match self {
            Self::Text(text) => prompt_tokens(tokenizer, text),
            Self::Chat(chat) => Ok(tokenizer.encode_chat(chat)?.into_iter().map(i64::from).collect()),
        }
    }

    /// Its text, as the model sees it.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn text(&self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Chat(chat) => Ok(tokenizer.render_chat(chat)?),
        }
    }
}

/// A prompt as tokens. As in training, a document begins with the end-of-text token; with imported weights, as theirs
/// did, with the `bos_token` of their tokenizer.
///
/// # Errors
/// When the tokenizer fails.
pub fn prompt_tokens(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<i64>, TokenizerError> {
    let begin = std::iter::once(tokenizer.beginning());
    Ok(begin.chain(tokenizer.encode(prompt)?).map(i64::from).collect())
}

/// Continues prompts (of [`Prompt::tokens`]), `batch_size` sequences at a time, in the order of the prompts. `on_event`
/// hears of it and says whether to go on at all; of the pieces of a beam search it hears at the end.
///
/// # Errors
/// When settings contradict each other, a prompt is longer than the model is made for, or model or tokenizer fail.
pub fn generate_text(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Vec<i64>],
    options: &TextOptions,
    mut on_event: impl FnMut(TextEvent<'_>) -> bool,
) -> Result<Vec<GeneratedText>, StageError> {
    let mut generate = options.generate.clone();
    generate.stop_tokens.extend(tokenizer.stop_tokens().into_iter().map(i64::from));
    check_lengths(model, prompts)?;
    let copies = generate.num_return_sequences;
    let rows = if generate.is_beam_search() { generate.beams.num_beams } else { copies };
    let at_a_time = (options.batch_size / rows.max(1)).max(1);
    let mut texts = Vec::with_capacity(prompts.len() * copies);
    for (i, prompts) in prompts.chunks(at_a_time).enumerate() {
        let first = i * at_a_time;
        generate.seed = options.generate.seed.wrapping_add((first * copies) as u64);
        let mut batch = Batch {
            streams: Vec::new(),
            first: first * copies,
            is_open: true,
            failure: None,
            on_event: &mut on_event,
        };
        let stream = || Stream {
            decoder: tokenizer.stream(),
            stop: StopStrings::new(&options.stop),
            text: String::new(),
        };
        let sequences = if generate.is_beam_search() {
            let ends = |tokens: &[i64]| -> bool {
                let ids: Vec<u32> = tokens.iter().map(|&id| id as u32).collect();
                let text = tokenizer.decode(&ids).unwrap_or_default();
                options.stop.iter().any(|stop| !stop.is_empty() && text.contains(stop.as_str()))
            };
            let sequences = beam_search(model, prompts, &generate, ends)?;
            batch.streams.extend(sequences.iter().map(|_| stream()));
            for (i, sequence) in sequences.iter().enumerate() {
                for &token in &sequence.tokens {
                    batch.token(&Step { sequence: i, token, logprobs: None });
                }
                batch.end(i, sequence.finish);
            }
            sequences
        } else {
            batch.streams.extend((0..prompts.len() * copies).map(|_| stream()));
            generate_streaming(model, prompts, &generate, &mut batch)?
        };
        if let Some(failure) = batch.failure {
            return Err(failure.into());
        }
        let (mut is_open, streams) = (batch.is_open, batch.streams);
        for (stream, sequence) in streams.into_iter().zip(sequences) {
            let text = GeneratedText {
                text: stream.text,
                stop_string: stream.stop.found().map(str::to_owned),
                sequence: Sequence { prompt: sequence.prompt + first, ..sequence },
            };
            is_open = is_open && on_event(TextEvent::Done(&text));
            texts.push(text);
        }
        if !is_open {
            break;
        }
    }
    Ok(texts)
}

/// Before anything is generated: a prompt that is too long among many is found at once.
fn check_lengths(model: &Model, prompts: &[Vec<i64>]) -> Result<(), StageError> {
    let Some(most) = model.plan().longest_document() else { return Ok(()) };
    for (i, prompt) in prompts.iter().enumerate() {
        let tokens = prompt.len();
        if tokens as u64 > most.max(0) as u64 {
            return Err(StageError::Other(format!(
                "prompt {i} has {tokens} tokens with its beginning, and the model is made for {most}: use a shorter one"
            )));
        }
    }
    Ok(())
}

/// The text of one sequence, as far as it is certain.
struct Stream<'a> {
    decoder: StreamDecoder<'a>,
    stop: StopStrings,
    text: String,
}

/// The sequences of one batch, and who hears of their texts.
struct Batch<'t, 'f, F> {
    streams: Vec<Stream<'t>>,
    /// Index of the first sequence among those of all batches.
    first: usize,
    is_open: bool,
    failure: Option<TokenizerError>,
    on_event: &'f mut F,
}

impl<F: FnMut(TextEvent<'_>) -> bool> Batch<'_, '_, F> {
    fn give(&mut self, sequence: usize, text: &str) {
        if !text.is_empty() {
            self.streams[sequence].text.push_str(text);
            let piece = TextEvent::Piece(self.first + sequence, text);
            self.is_open = self.is_open && (self.on_event)(piece);
        }
    }
}

impl<F: FnMut(TextEvent<'_>) -> bool> Listener for Batch<'_, '_, F> {
    fn token(&mut self, step: &Step<'_>) -> bool {
        let stream = &mut self.streams[step.sequence];
        match stream.decoder.push(step.token as u32) {
            Ok(piece) => {
                let text = stream.stop.push(&piece);
                self.give(step.sequence, &text);
            }
            Err(error) => self.failure = Some(error),
        }
        let is_whole = self.streams[step.sequence].stop.found().is_some();
        self.is_open && self.failure.is_none() && !is_whole
    }

    fn end(&mut self, sequence: usize, _finish: Finish) {
        let stream = &mut self.streams[sequence];
        match stream.decoder.clone().finish() {
            Ok(rest) => {
                let text = stream.stop.push(&rest) + &stream.stop.finish();
                self.give(sequence, &text);
            }
            Err(error) => self.failure = Some(error),
        }
    }
}
