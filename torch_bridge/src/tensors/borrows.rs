//! Which ranges of memory this thread has lent out as slices.
//!
//! Two tensors can share memory, so the borrow checker cannot see that a slice of one overlaps a mutable slice of
//! another. This table can: many readers or one writer per byte, as in a `RefCell`.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

struct Loan {
    id: u64,
    range: Range<usize>,
    writes: bool,
}

#[derive(Default)]
struct Table {
    next: u64,
    loans: Vec<Loan>,
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::default();
}

/// A loan that ends when it drops, on its own thread.
#[derive(Debug)]
pub(super) struct Borrow {
    id: u64,
    _thread: PhantomData<*const ()>,
}

impl Borrow {
    /// Lends the range out, or refuses because a loan overlaps and either of them writes.
    pub(super) fn new(range: Range<usize>, writes: bool) -> Option<Self> {
        TABLE.with_borrow_mut(|table| {
            let overlaps = |loan: &Loan| loan.range.start < range.end && range.start < loan.range.end;
            if table.loans.iter().any(|loan| (writes || loan.writes) && overlaps(loan)) {
                return None;
            }
            let id = table.next;
            table.next += 1;
            table.loans.push(Loan { id, range, writes });
            Some(Self { id, _thread: PhantomData })
        })
    }
}

impl Drop for Borrow {
    fn drop(&mut self) {
        // While the thread's own storage is being torn down there is no table left to clear.
        let _ = TABLE.try_with(|table| {
            if let Ok(mut table) = table.try_borrow_mut() {
                table.loans.retain(|loan| loan.id != self.id);
            }
        });
    }
}
