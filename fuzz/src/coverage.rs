//! Which edges of the program an input reached.
//!
//! Built with `fuzz/run`, each edge has a counter of one byte, all in one range that the compiler's
//! start-up code announces here. Built otherwise the range is empty, and mutation goes on blindly.

use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};

static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Called by start-up code of each instrumented module, always with the range of the whole program.
#[expect(unsafe_code, reason = "the compiler's pass calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    START.store(start, Ordering::Relaxed);
    LENGTH.store(
        (stop as usize).saturating_sub(start as usize),
        Ordering::Relaxed,
    );
}

fn counters() -> &'static [AtomicU8] {
    let start = START.load(Ordering::Relaxed);
    if start.is_null() {
        return &[];
    }
    // SAFETY: the range is a section of the program, so it is there as long as the program. Instrumented code
    // counts in it without atomics, on the threads this crate runs inputs on, and those rest while it is read.
    #[expect(unsafe_code, reason = "the counters are plain memory")]
    unsafe {
        std::slice::from_raw_parts(start.cast(), LENGTH.load(Ordering::Relaxed))
    }
}

/// Whether the program was built with counters.
pub fn is_built_in() -> bool {
    !counters().is_empty()
}

/// Sets all counters to zero.
pub fn reset() {
    for counter in counters() {
        counter.store(0, Ordering::Relaxed);
    }
}

/// The edges that were reached since the last [`reset`].
pub fn edges() -> Vec<usize> {
    let counters = counters().iter().enumerate();
    counters
        .filter(|(_, count)| count.load(Ordering::Relaxed) > 0)
        .map(|(edge, _)| edge)
        .collect()
}

/// What was reached so far: for each edge, how often, in powers of two.
#[derive(Debug, Default)]
pub struct Reached {
    seen: Vec<u8>,
    edges: usize,
}

impl Reached {
    /// Adds what the counters tell; whether anything of it is new: an edge, or an edge so many times.
    pub fn add(&mut self) -> bool {
        let counters = counters();
        self.seen.resize(counters.len(), 0);
        let mut new = false;
        for (counter, seen) in counters.iter().zip(&mut self.seen) {
            let count = counter.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            let bucket = 1 << count.ilog2();
            if *seen & bucket == 0 {
                self.edges += usize::from(*seen == 0);
                *seen |= bucket;
                new = true;
            }
        }
        new
    }

    /// How many edges were reached.
    pub fn edges(&self) -> usize {
        self.edges
    }
}
