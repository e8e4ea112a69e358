//! Panics of tch's operators as errors.
//!
//! tch has each operator twice: one that gives an error, and one that panics, which `&a + &b` calls too. Where libtorch
//! refuses, or memory is short, code that is written with the second panics with libtorch's message.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::error::{Error, without_backtrace};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    /// Where the last silent panic was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes this thread's panics silent until it is dropped: somebody catches them and says what they say.
struct Quiet {
    before: bool,
}

impl Quiet {
    fn new() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let loud = take_hook();
            set_hook(Box::new(move |panic| {
                if QUIET.get() {
                    let place = panic.location().map_or(String::new(), |place| format!("{place}: "));
                    PLACE.with_borrow_mut(|last| *last = place);
                } else {
                    loud(panic);
                }
            }));
        });
        Self { before: QUIET.replace(true) }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(self.before);
    }
}

/// Runs `work`; a panic of a tch operator in it becomes an error with libtorch's message. Any other panic is a bug: it goes
/// on, after it was shown.
///
/// # Errors
/// What `work` gives, and a panic of a tch operator.
pub fn caught<T, E: From<Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let quiet = Quiet::new();
    let outcome = catch_unwind(AssertUnwindSafe(work));
    drop(quiet);
    match outcome {
        Ok(outcome) => outcome,
        Err(payload) => {
            if let Some(message) = refusal(payload.as_ref()) {
                return Err(Error::Tch(message).into());
            }
            let place = PLACE.with_borrow(String::clone);
            eprintln!("a bug, please report it: {place}{}", message(payload.as_ref()));
            std::panic::resume_unwind(payload)
        }
    }
}

/// libtorch's message, if a tch operator panicked.
fn refusal(payload: &(dyn Any + Send)) -> Option<String> {
    let message = message(payload);
    let (_, rest) = message.split_once("on an `Err` value: Torch(\"")?;
    Some(rest.trim_end_matches(')').trim_end_matches('"').replace("\\n", "\n"))
}

/// What a panic said.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "of unknown cause".to_owned());
    without_backtrace(&message)
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn a_panic_of_an_operator_is_libtorchs_message() {
        let error = caught(|| -> Result<Tensor, Error> {
            Ok(Tensor::zeros([2, 3], tch::kind::FLOAT_CPU)
                .matmul(&Tensor::zeros([2, 3], tch::kind::FLOAT_CPU)))
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("mat1 and mat2 shapes cannot be multiplied") && !error.contains("frame"),
            "{error}"
        );
        assert_eq!(caught(|| Ok::<_, Error>(3)).unwrap(), 3);
        let other = catch_unwind(|| caught(|| -> Result<(), Error> { panic!("a bug of ours") }));
        assert_eq!(message(other.unwrap_err().as_ref()), "a bug of ours");
    }
}
