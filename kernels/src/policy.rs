//! Whether operations take their fast paths, for the whole process.

use std::sync::atomic::{AtomicU8, Ordering};

/// Which implementation an operation takes where it has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Policy {
    /// The fast path of the tensors' device. A GPU kernel that cannot be had (no driver, no NVRTC, an architecture it
    /// does not compile for, a dtype it does not take) is replaced by the definition, with one warning per reason.
    #[default]
    Auto,
    /// As [`Auto`](Self::Auto), but a GPU kernel that cannot be had is an error.
    Require,
    /// The definition in plain tensor operations, on every device: slow, for finding out whether a kernel is to blame.
    Reference,
}

static POLICY: AtomicU8 = AtomicU8::new(Policy::Auto as u8);

/// Sets the policy of the process; calls that have begun go on as they began.
pub fn set(policy: Policy) {
    POLICY.store(policy as u8, Ordering::Relaxed);
}

/// The policy of the process.
pub fn get() -> Policy {
    match POLICY.load(Ordering::Relaxed) {
        1 => Policy::Require,
        2 => Policy::Reference,
        _ => Policy::Auto,
    }
}

/// Whether fast paths may be taken at all.
pub(crate) fn fast() -> bool {
    get() != Policy::Reference
}
