//! Where a run speaks to its user: a terminal, or a pipe that may close at any time.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

/// Lines for the user. A reader that goes away (`hymba run ... | head`) is no reason to stop a run, so nothing here
/// fails.
#[derive(Clone)]
pub struct Console {
    sink: Arc<Mutex<Box<dyn Write + Send>>>,
    terminal: bool,
}

impl Console {
    /// Standard output.
    pub fn stdout() -> Self {
        Self { sink: Arc::new(Mutex::new(Box::new(io::stdout()))), terminal: io::stdout().is_terminal() }
    }

    /// A console on standard error, where standard output is for results.
    pub fn stderr() -> Self {
        Self::to(std::io::stderr())
    }

    /// Any other place, which is taken for a pipe.
    pub fn to(sink: impl Write + Send + 'static) -> Self {
        Self { sink: Arc::new(Mutex::new(Box::new(sink))), terminal: false }
    }

    /// Nowhere.
    pub fn silent() -> Self {
        Self::to(io::sink())
    }

    /// Whether a line can be redrawn.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes a line.
    pub fn line(&self, text: &str) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(sink, "{text}").and_then(|()| sink.flush()); // see the type's comment
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}
