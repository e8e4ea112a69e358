//! Work on libtorch's own threads.
//!
//! A second pool beside libtorch's would fight it: its threads keep spinning for a while after each operator, on the
//! processors that the other pool wants. Here kernels in Rust run on the threads that operators run on, as many as
//! [`device::set_intra_threads`](crate::device::set_intra_threads) allows.

use std::{
    any::Any,
    ffi::c_void,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Mutex,
};

use crate::ffi;

/// Calls `body` with ranges that together are `0..count`, each at least `grain` long if there are that many, on as many
/// threads as libtorch has; which ranges there are depends on that number. Nested calls run on the calling thread.
///
/// # Panics
/// As `body` does: its first panic is raised again here, once all threads are done.
pub fn ranges(count: usize, grain: usize, body: impl Fn(Range<usize>) + Sync) {
    let context = Context { body: &body, panic: Mutex::new(None) };
    let user = std::ptr::from_ref(&context).cast_mut().cast::<c_void>();
    // SAFETY: `context` outlives the call, which returns when every thread is done; `trampoline` reads it as the type
    // that it is, and lets no panic out.
    unsafe { ffi::hb_parallel_for(count as i64, grain.max(1) as i64, trampoline, user) };
    if let Some(panic) = context.panic.into_inner().unwrap_or_default() {
        resume_unwind(panic);
    }
}

type Body<'a> = &'a (dyn Fn(Range<usize>) + Sync + 'a);

struct Context<'a> {
    body: Body<'a>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

extern "C" fn trampoline(user: *mut c_void, begin: i64, end: i64) {
    // SAFETY: `ranges` passes a pointer to its `Context`, which lives until all threads are done, and shares it only.
    let context = unsafe { &*user.cast::<Context<'_>>() };
    let run = AssertUnwindSafe(|| (context.body)(begin as usize..end as usize));
    if let Err(panic) = catch_unwind(run)
        && let Ok(mut first) = context.panic.lock()
    {
        first.get_or_insert(panic);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::guards::ThreadCount;

    #[test]
    fn every_index_comes_once_on_several_threads() {
        let seen: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        let threads = Mutex::new(std::collections::BTreeSet::new());
        let _guard = ThreadCount::new(2).expect("two threads");
        ranges(seen.len(), 10, |range| {
            threads.lock().expect("no panic").insert(format!("{:?}", std::thread::current().id()));
            for index in range {
                seen[index].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        assert_eq!(threads.lock().expect("no panic").len(), 2);
    }

    #[test]
    fn a_panic_comes_back_to_the_caller() {
        let caught = catch_unwind(|| ranges(100, 1, |range| assert!(!range.contains(&70), "at 70")));
        let text = caught.expect_err("it panics");
        assert!(text.downcast_ref::<&str>().is_some_and(|text| text.contains("at 70")));
        ranges(10, 1, |_| ()); // libtorch works on
    }
}
