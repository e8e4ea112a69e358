//! How far a stage is: one redrawn line on a terminal, plain lines on a pipe.

use std::{fmt::Write as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Console;

/// The progress of one stage.
#[derive(Debug)]
pub struct Progress {
    console: Console,
    stage: String,
    total: u64,
    targets: &'static str,
    bar: Option<ProgressBar>,
}

/// What a line shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Steps that are done.
    pub step: u64,
    /// Loss of the last step that was read.
    pub loss: f64,
    /// Learning rate of that step.
    pub lr: f64,
    /// Targets per second since the last reading.
    pub tokens_per_second: f64,
    /// Time to the last step at this speed.
    pub eta: Duration,
}

impl Progress {
    /// Starts to show a stage of `total` steps, which learn from `targets`, as `tokens`.
    pub fn new(console: Console, stage: &str, total: u64, targets: &'static str) -> Self {
        let bar = console.is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout());
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len}  {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(stage.to_owned());
            bar
        });
        Self { console, stage: stage.to_owned(), total, targets, bar }
    }

    /// A step is done.
    pub fn advance(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// Shows a reading.
    pub fn show(&self, reading: &Reading) {
        match &self.bar {
            Some(bar) => bar.set_message(self.describe(reading)),
            None => self.console.line(&format!(
                "{} step {}/{}  {}",
                self.stage,
                reading.step,
                self.total,
                self.describe(reading)
            )),
        }
    }

    /// Says something without disturbing the redrawn line.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.console.line(text)),
            None => self.console.line(text),
        }
    }

    fn describe(&self, reading: &Reading) -> String {
        let Reading { loss, lr, eta, .. } = *reading;
        let speed = thousands(reading.tokens_per_second);
        format!("loss {loss:.4}  lr {lr:.2e}  {speed} {}/s  ETA {}", self.targets, clock(eta))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon(); // the line stays on the screen as it was last
        }
    }
}

fn thousands(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// `1:02:03`, or `2:03` below an hour.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut text = String::new();
    if seconds >= 3600 {
        let _ = write!(text, "{}:{:02}", seconds / 3600, seconds / 60 % 60); // a String takes everything
    } else {
        let _ = write!(text, "{}", seconds / 60);
    }
    let _ = write!(text, ":{:02}", seconds % 60);
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl std::io::Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    const READING: Reading =
        Reading { step: 5, loss: 2.5, lr: 3e-4, tokens_per_second: 12_345.0, eta: Duration::from_secs(3723) };

    #[test]
    fn a_pipe_gets_plain_lines() {
        let pipe = Pipe::default();
        Progress::new(Console::to(pipe.clone()), "pretrain", 20, "tokens").show(&READING);
        let text = String::from_utf8(pipe.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "pretrain step 5/20  loss 2.5000  lr 3.00e-4  12.3k tokens/s  ETA 1:02:03\n");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let progress = Progress::new(Console::to(Closed), "pretrain", 20, "tokens");
        progress.show(&READING);
        progress.say("still here");
    }
}
