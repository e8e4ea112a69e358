//! `hymba generate`: continues texts with a trained model.

use std::{
    error::Error,
    fs,
    io::{self, BufWriter, Read, Write},
    path::Path,
    process::ExitCode,
};

use recipes::{Prompt, SavedRun, TextEvent, generate_text};
use serde_json::Value;
use training::tokenizer::chat::Chat;

use super::Outcome;
use crate::{args::Generate, output};

pub(super) fn run(arguments: &Generate) -> Outcome {
    let options = arguments.options();
    options.generate.check().map_err(|error| flags(&error.to_string()))?;
    let prompts = prompts(arguments)?;
    let saved = SavedRun::open(&arguments.run, arguments.checkpoint, arguments.device.resolve()?)?;
    for reason in &saved.passed_over {
        output::error(&format!("{reason}; taking {}", saved.checkpoint.display()));
    }
    if let Some(threads) = arguments.threads.map(|threads| threads as usize).or(saved.trainer.threads) {
        torch_bridge::device::set_intra_threads(threads)?;
    }
    let mut tokenizer = saved.tokenizer()?.clone();
    if let Some(template) = &arguments.chat_template {
        tokenizer = tokenizer.with_chat_template(&read(template)?);
    }
    let (model, tokenizer) = (&saved.model, &tokenizer);
    let ids: Vec<Vec<i64>> =
        prompts.iter().map(|prompt| prompt.tokens(tokenizer)).collect::<Result<_, _>>()?;
    // A text is shown with what it continues; of a chat, the answer.
    let shown = |index: usize| match &prompts[index] {
        Prompt::Text(text) => text.as_str(),
        Prompt::Chat(_) => "",
    };
    let sequences = prompts.len() * options.generate.num_return_sequences;
    let mut out = Output { out: BufWriter::new(io::stdout().lock()), failure: None };
    // One text is shown as it comes, several one after the other.
    let streams = sequences == 1 && !arguments.json;
    if streams && !out.write(shown(0)) {
        return out.end();
    }
    let mut failure = None;
    generate_text(model, tokenizer, &ids, &options, |event| match event {
        TextEvent::Piece(_, text) => !streams || out.write(text),
        TextEvent::Done(_) if streams => out.write("\n"),
        TextEvent::Done(text) if arguments.json => {
            let line = text.to_json(tokenizer).and_then(|mut line| {
                line["prompt"] = prompts[text.sequence.prompt].text(tokenizer)?.into();
                Ok(line)
            });
            match line {
                Ok(line) => out.write(&format!("{line}\n")),
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        }
        TextEvent::Done(text) => {
            let sequence = &text.sequence;
            let how = sequence
                .score
                .map_or_else(|| format!("seed {}", sequence.seed), |score| format!("score {score:.4}"));
            let (prompt, new) = (shown(sequence.prompt), &text.text);
            out.write(&format!("--- prompt {}, {how}, {}\n{prompt}{new}\n", sequence.prompt, text.finish()))
        }
    })?
    .iter()
    .filter(|text| text.is_cut())
    .for_each(|text| {
        let (prompt, tokens) = (text.sequence.prompt, text.sequence.tokens.len());
        output::error(&format!(
            "prompt {prompt}: stopped after {tokens} tokens: the model is made for no longer text"
        ));
    });
    match failure {
        Some(error) => Err(error.into()),
        None => out.end(),
    }
}

/// The prompts, in the order in which they were given; none is the empty one.
fn prompts(arguments: &Generate) -> Result<Vec<Prompt>, Box<dyn Error>> {
    let tools = arguments.tools.as_deref().map(read).transpose()?;
    let with_tools = |chat: Chat| match &tools {
        Some(tools) => chat.with_tools(tools),
        None => Ok(chat),
    };
    if let Some(path) = &arguments.prompts {
        let text = read(path)?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let prompts: Vec<Prompt> = lines
            .map(|(i, line)| {
                prompt(line).map_err(|problem| format!("{} line {}: {problem}", path.display(), i + 1))
            })
            .collect::<Result<_, _>>()?;
        return if prompts.is_empty() {
            Err(format!("{} has no prompt in it", path.display()).into())
        } else {
            Ok(prompts)
        };
    }
    if let Some(path) = &arguments.chat {
        let chat = Chat::from_json(&read(path)?).and_then(with_tools);
        return Ok(vec![Prompt::Chat(chat.map_err(|error| format!("{}: {error}", path.display()))?)]);
    }
    if let Some(user) = &arguments.user {
        let system = arguments.system.iter().map(|system| ("system", system.as_str()));
        let chat = Chat::of_texts(system.chain([("user", user.as_str())]));
        return Ok(vec![Prompt::Chat(with_tools(chat)?)]);
    }
    let mut prompts = arguments.prompt.clone();
    for prompt in prompts.iter_mut().filter(|prompt| *prompt == "-") {
        *prompt = read(Path::new("-"))?;
    }
    if prompts.is_empty() {
        prompts.push(String::new());
    }
    Ok(prompts.into_iter().map(Prompt::Text).collect())
}

/// A line of a file of prompts.
fn prompt(line: &str) -> Result<Prompt, String> {
    match serde_json::from_str(line) {
        Ok(Value::String(prompt)) => Ok(Prompt::Text(prompt)),
        Ok(Value::Object(mut object)) if object.contains_key("prompt") => match object.remove("prompt") {
            Some(Value::String(prompt)) => Ok(Prompt::Text(prompt)),
            other => Err(format!("`prompt` must be a text, not {}", other.unwrap_or_default())),
        },
        Ok(Value::Object(object)) if !object.contains_key("messages") => {
            Err("the object has neither `prompt` nor `messages`".to_owned())
        }
        // Parsed again, so that mappings in it keep the order of their keys.
        Ok(Value::Object(_) | Value::Array(_)) => {
            Chat::from_json(line).map(Prompt::Chat).map_err(|error| error.to_string())
        }
        Ok(other) => Err(format!("expected a text, an object with `prompt`, or a chat, not {other}")),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// A file, or standard input for `-`.
fn read(path: &Path) -> Result<String, Box<dyn Error>> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// A message that names settings, with the names of their flags.
fn flags(message: &str) -> String {
    let mut parts = message.split('`');
    let mut text = parts.next().unwrap_or_default().to_owned();
    while let Some(name) = parts.next() {
        text.extend(["--", &name.replace('_', "-"), parts.next().unwrap_or_default()]);
    }
    text
}

/// Standard output whose reader may go away.
struct Output<W: Write> {
    out: W,
    failure: Option<io::Error>,
}

impl<W: Write> Output<W> {
    /// Writes a text at once; false when nobody reads any more.
    fn write(&mut self, text: &str) -> bool {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        self.failure = written.err();
        self.failure.is_none()
    }

    /// A reader that has gone away is no error.
    fn end(self) -> Outcome {
        match self.failure {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(format!("cannot write to standard output: {error}").into())
            }
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_an_object_or_a_chat() {
        let text = |line: &str| match prompt(line) {
            Ok(Prompt::Text(text)) => text,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(text("\"a b\""), "a b");
        assert_eq!(text("{\"prompt\": \"x\", \"id\": 3}"), "x");
        for line in ["[{\"role\": \"user\"}]", "{\"messages\": [{\"role\": \"user\"}]}"] {
            assert!(matches!(prompt(line), Ok(Prompt::Chat(_))), "{line}");
        }
        for (line, problem) in [
            ("{}", "neither `prompt` nor `messages`"),
            ("3", "expected a text"),
            ("a", "not JSON"),
            ("{\"prompt\": 3}", "must be a text"),
            ("[3]", "no object with a `role`"),
        ] {
            assert!(prompt(line).unwrap_err().contains(problem), "{line}");
        }
    }

    #[test]
    fn settings_are_named_as_flags() {
        assert_eq!(flags("`top_k` is for drawing (`num_beams`)"), "--top-k is for drawing (--num-beams)");
    }
}
