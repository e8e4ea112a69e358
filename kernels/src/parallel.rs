//! Work spread over libtorch's threads, in pieces that do not depend on how many there are: so neither do the results.

use std::{cell::UnsafeCell, marker::PhantomData};

use torch_bridge::parallel;

/// Below this many elementary steps, waking other threads costs more than they save.
const WORTH_THREADS: usize = 1 << 14;

/// Calls `body` once per item, each thread with a `scratch` of its own; `steps` is the size of the whole work.
pub(crate) fn each<T: Send, S>(
    items: Vec<T>,
    steps: usize,
    scratch: impl Fn() -> S + Sync + Send,
    body: impl Fn(&mut S, T) + Sync + Send,
) {
    if steps < WORTH_THREADS || items.len() < 2 {
        let mut scratch = scratch();
        for item in items {
            body(&mut scratch, item);
        }
        return;
    }
    let items: Vec<Slot<T>> = items.into_iter().map(|item| Slot(UnsafeCell::new(Some(item)))).collect();
    parallel::ranges(items.len(), 1, |range| {
        let mut scratch = scratch();
        for slot in &items[range] {
            // SAFETY: the ranges of one call share no index, so this thread alone has the slot.
            if let Some(item) = unsafe { (*slot.0.get()).take() } {
                body(&mut scratch, item);
            }
        }
    });
}

/// An item that the one thread whose range it is in takes out.
struct Slot<T>(UnsafeCell<Option<T>>);

// SAFETY: `each` lets one thread only touch a slot while several have the list.
unsafe impl<T: Send> Sync for Slot<T> {}

/// A slice that several threads write at once, each its own columns.
pub(crate) struct Columns<'a, T> {
    start: *mut T,
    length: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, and `range` makes its callers responsible for not sharing elements.
unsafe impl<T: Send> Sync for Columns<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), _slice: PhantomData }
    }

    /// The `count` elements from `first` on.
    ///
    /// # Safety
    /// While the result lives, nobody else may ask for any of these elements.
    #[allow(clippy::mut_from_ref, clippy::inline_always)]
    #[inline(always)]
    pub(crate) unsafe fn range(&self, first: usize, count: usize) -> &'a mut [T] {
        assert!(first <= self.length && count <= self.length - first, "columns out of the slice");
        // SAFETY: inside the slice that `new` borrowed for `'a`; the caller keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
