//! Finding operators and calling them.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{PoisonError, RwLock};

use super::{Argument, Value};
use crate::error::{Error, Result};
use crate::ffi;

/// A handle on one registered operator, cheap to copy and valid for the life of the process.
///
/// Finding one costs a look-up by name; where a call is hot, find it once and keep it.
#[derive(Clone, Copy)]
pub struct Operator {
    handle: &'static Handle,
}

struct Handle {
    raw: *const ffi::RawOperator,
    /// As the dispatcher writes it, `namespace::name.overload`.
    name: String,
}

// SAFETY: an operator handle is a pointer into the dispatcher's table, which libtorch itself shares between threads.
unsafe impl Send for Handle {}
// SAFETY: as above; nothing is ever written through it.
unsafe impl Sync for Handle {}

type Table = HashMap<String, HashMap<String, Operator>>;

/// Operators by name and overload. Two levels, so that a look-up allocates nothing.
static FOUND: RwLock<Option<Table>> = RwLock::new(None);

impl Operator {
    /// The operator `name.overload`; `aten::` may be left out.
    ///
    /// # Errors
    /// libtorch has registered none of this name and overload.
    pub fn find(name: &str, overload: &str) -> Result<Self> {
        let known = FOUND.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(operator) = known.as_ref().and_then(|table| table.get(name)?.get(overload)) {
            return Ok(*operator);
        }
        drop(known);
        let operator = Self::look_up(name, overload)?;
        let mut table = FOUND.write().unwrap_or_else(PoisonError::into_inner);
        let overloads = table.get_or_insert_default().entry(name.to_owned()).or_default();
        Ok(*overloads.entry(overload.to_owned()).or_insert(operator))
    }

    fn look_up(name: &str, overload: &str) -> Result<Self> {
        let full = if name.contains("::") { name.to_owned() } else { format!("aten::{name}") };
        let shown = if overload.is_empty() { full.clone() } else { format!("{full}.{overload}") };
        let terminated = |text: &str| {
            CString::new(text)
                .map_err(|_| Error::mismatch("ops", "a name without a zero byte", format!("{text:?}")))
        };
        let (full, overload) = (terminated(&full)?, terminated(overload)?);
        let mut raw = std::ptr::null();
        // SAFETY: both texts are terminated and outlive the call; the out-pointer is writable.
        let code = unsafe { ffi::hb_operator_find(full.as_ptr(), overload.as_ptr(), &raw mut raw) };
        ffi::check(code, || shown.clone())?;
        // One small allocation per operator that a program uses, kept for its life.
        Ok(Self { handle: Box::leak(Box::new(Handle { raw, name: shown })) })
    }

    /// Calls the operator; see [`call`](super::call).
    ///
    /// # Errors
    /// An argument is of the wrong type or missing, or libtorch refuses the call.
    pub fn call(&self, arguments: &[Value]) -> Result<Vec<Value>> {
        self.call_with(&arguments.iter().map(Value::as_argument).collect::<Vec<_>>())
    }

    /// The call on borrowed arguments, for callers within the crate that hold long lists of tensors.
    pub(crate) fn call_with(&self, arguments: &[Argument<'_>]) -> Result<Vec<Value>> {
        let lowered: Vec<_> = arguments.iter().map(Argument::lower).collect();
        let raw: Vec<_> = lowered.iter().map(super::argument::Lowered::value).collect();
        let mut results = Vec::with_capacity(1);
        // SAFETY: the handle is valid; `raw` points into `arguments` and `lowered`, which outlive the call; the sink
        // gets the vector that it expects and is called only while we wait here.
        let code = unsafe {
            ffi::hb_operator_call(
                self.handle.raw,
                raw.as_ptr(),
                raw.len(),
                collect,
                (&raw mut results).cast(),
            )
        };
        ffi::check(code, || self.handle.name.as_str())?;
        Ok(results)
    }

    /// The schema as libtorch writes it, for messages and documentation.
    ///
    /// # Errors
    /// None that is known of; libtorch could run out of memory.
    pub fn schema(&self) -> Result<String> {
        let mut results: Vec<Value> = Vec::new();
        // SAFETY: the handle is valid; the sink gets the vector that it expects.
        let code = unsafe { ffi::hb_operator_schema(self.handle.raw, collect, (&raw mut results).cast()) };
        ffi::check(code, || self.handle.name.as_str())?;
        results.pop().ok_or_else(|| Error::mismatch(&self.handle.name, "a schema", "nothing"))?.into_string()
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.handle.name)
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Operator({})", self.handle.name)
    }
}

/// Receives one result.
pub(super) extern "C" fn collect(context: *mut c_void, value: *const ffi::Value) {
    // SAFETY: every caller passes a `Vec<Value>` as the context and waits while this runs.
    let results = unsafe { &mut *context.cast::<Vec<Value>>() };
    // SAFETY: C++ passes a valid value whose tensors and opaque values are ours to keep.
    results.push(unsafe { Value::from_raw(&*value) });
}
