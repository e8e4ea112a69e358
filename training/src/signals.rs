//! Ctrl-C and SIGTERM: the first asks the loop to stop at the end of its step, the second ends the process at once.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// The exit code by which shells know what ended a process: 130 for Ctrl-C, 143 for SIGTERM.
    pub fn exit_code(self) -> i32 {
        128 + self.0
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        if self.0 == SIGINT { "Ctrl-C" } else { "SIGTERM" }
    }
}

/// The handlers of this process.
struct Handlers {
    /// The signal that came; 0 for none.
    requested: Arc<AtomicUsize>,
    /// Whether a signal ends the process at once. So it is outside of a loop, and after a first signal.
    immediate: Arc<AtomicBool>,
}

impl Handlers {
    /// Sets the handlers, once for the process.
    fn get() -> io::Result<&'static Self> {
        static HANDLERS: OnceLock<Handlers> = OnceLock::new();
        if let Some(handlers) = HANDLERS.get() {
            return Ok(handlers);
        }
        let handlers =
            Self { requested: Arc::new(AtomicUsize::new(0)), immediate: Arc::new(AtomicBool::new(true)) };
        for signal in [SIGINT, SIGTERM] {
            // In this order: a signal first ends the process if it may, and only then makes the next one end it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&handlers.immediate))?;
            flag::register_usize(signal, Arc::clone(&handlers.requested), signal as usize)?;
            flag::register(signal, Arc::clone(&handlers.immediate))?;
        }
        Ok(HANDLERS.get_or_init(|| handlers))
    }
}

/// While it lives, a first signal only sets a flag. Outside of its life, signals end the process at once.
pub struct Interrupt {
    handlers: &'static Handlers,
}

impl Interrupt {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let handlers = Handlers::get()?;
        handlers.requested.store(0, Ordering::SeqCst);
        handlers.immediate.store(false, Ordering::SeqCst);
        Ok(Self { handlers })
    }

    /// The signal that came since listening began.
    pub fn requested(&self) -> Option<Signal> {
        match self.handlers.requested.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(Signal(signal as i32)),
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.handlers.immediate.store(true, Ordering::SeqCst);
    }
}
