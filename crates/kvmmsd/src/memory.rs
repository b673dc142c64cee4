//! Giving memory back. The C library keeps what was freed for the next time, of every thread apart; after a burst (a hundred password
//! checks, a hundred answers of megabytes) that is hundreds of megabytes nobody needs again.

/// So much more in memory, or so much more that was freed, than after the last time is looked into.
const GROWTH: usize = 16 << 20;

/// Gives back now and then.
#[derive(Default)]
pub(crate) struct Memory {
    resident: usize,
    free: usize,
}

impl Memory {
    /// Has the allocator serve large pieces from the system, where they return the moment they are freed.
    pub(crate) fn new() -> Self {
        glibc::large_pieces_apart();
        Memory::default()
    }

    /// Looks whether there is something to give back.
    pub(crate) fn tick(&mut self) {
        let (resident, free) = (resident(), glibc::free());
        if resident > self.resident + GROWTH || free > self.free + GROWTH {
            glibc::trim();
            self.resident = self::resident();
            // What was given back still counts as free there.
            self.free = glibc::free();
            tracing::debug!(
                before = resident,
                after = self.resident,
                "freed memory was given back"
            );
        } else {
            self.resident = self.resident.min(resident);
            self.free = self.free.min(free);
        }
    }
}

/// Bytes of the process in memory; 0 where that cannot be told.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|n| n.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "functions of the C library that take and return numbers only"
)]
mod glibc {
    use std::ffi::c_int;

    unsafe extern "C" {
        safe fn mallopt(parameter: c_int, value: c_int) -> c_int;
        safe fn malloc_trim(pad: usize) -> c_int;
        safe fn mallinfo2() -> Info;
    }

    /// `struct mallinfo2`: ten numbers.
    #[repr(C)]
    struct Info([usize; 10]);

    impl Info {
        /// `fordblks`: bytes in free pieces.
        fn free(&self) -> usize {
            let Info([.., free, _]) = self;
            *free
        }
    }

    const M_MMAP_THRESHOLD: c_int = -3;
    const M_ARENA_MAX: c_int = -8;

    pub(super) fn large_pieces_apart() {
        // Set by hand, it no longer grows with the largest piece freed so far.
        mallopt(M_MMAP_THRESHOLD, 1 << 20);
        // Eight for each processor otherwise, each with what it keeps.
        mallopt(M_ARENA_MAX, 4);
    }

    pub(super) fn trim() {
        malloc_trim(0);
    }

    pub(super) fn free() -> usize {
        mallinfo2().free()
    }
}

#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn large_pieces_apart() {}
    pub(super) fn trim() {}
    pub(super) fn free() -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_burst_took_is_given_back() {
        let mut memory = Memory::new();
        memory.tick();
        let before = resident();
        // Too small to be served apart.
        let burst: Vec<Vec<u8>> = (0..64_000).map(|n| vec![n as u8; 1000]).collect();
        assert!(resident() > before + GROWTH);
        // What keeps the top of the heap from shrinking by itself.
        let pin = vec![1u8; 1000];
        drop(burst);
        // Other tests of this process may hold much for a while.
        for _ in 0..600 {
            memory.tick();
            if resident() < before + GROWTH {
                drop(pin);
                return;
            }
            memory = Memory::default();
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{before} bytes before, {} after", resident());
    }
}
