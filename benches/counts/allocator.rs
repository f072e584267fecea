//! The system's allocator, counting what each thread asks it for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ASKED: Cell<Asked> = const { Cell::new(Asked { times: 0, bytes: 0 }) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a thread has asked for, ever: growing a block asks for what it grows by.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) times: usize,
    pub(crate) bytes: usize,
}

/// By this thread, until now.
pub(crate) fn asked() -> Asked {
    ASKED.get()
}

fn count(bytes: usize) {
    let Asked { times, bytes: before } = ASKED.get();
    ASKED.set(Asked { times: times + 1, bytes: before + bytes });
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting touches nothing but two numbers of
// the thread's own, which need neither an allocation nor a destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}
