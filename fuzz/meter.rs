//! Counts what is allocated.

use peak_alloc::PeakAlloc;

/// The counts are of the whole process: libFuzzer runs one input at a time, and allocates with C++.
#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Does the work, and says how many bytes were allocated at once for it, at most.
fn peak(work: &mut dyn FnMut()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    work();
    ALLOCATOR.peak_usage() - before
}

/// Runs one input. What reads it is metered, and bounded, in larder; and nothing of it may stay.
pub fn run(target: fn(&[u8], larder::fuzzing::Meter<'_>), data: &[u8]) {
    let before = ALLOCATOR.current_usage();
    target(data, &peak);
    assert_eq!(ALLOCATOR.current_usage(), before, "what was allocated is not released");
}
