//! Work done by several threads, its results taken in order.
//!
//! Each thread takes the next item (planning is serial), works on it, and hands the result over; results are finished in the order of
//! the items, by whichever thread completes the sequence. How far threads may run ahead is bounded, so memory is too. The first error
//! ends all of it.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::cancel::CancelFlag;
use crate::error::{Error, Result};

/// Items that may be under way or waiting for an earlier one.
const AHEAD: u64 = 64;
/// Most threads of one piece of work; each holds one buffer.
pub(crate) const MAX_THREADS: usize = 16;

struct Finisher<O, F> {
    finish: F,
    waiting: BTreeMap<u64, O>,
    /// Permits given out, and results finished.
    issued: u64,
    done: u64,
    stopped: bool,
    error: Option<Error>,
}

struct Planner<N> {
    next: N,
    sequence: u64,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on every item that `next` gives, on `threads` threads with a buffer of `buffer` bytes each, and calls `finish` with
/// the results in the order of the items.
pub(crate) fn run<I, O, N, W, F>(
    threads: usize,
    buffer: usize,
    cancel: &CancelFlag,
    next: N,
    work: W,
    finish: F,
) -> Result<()>
where
    I: Send,
    O: Send,
    N: FnMut() -> Result<Option<I>> + Send,
    W: Fn(I, &mut [u8]) -> Result<O> + Sync,
    F: FnMut(O) -> Result<()> + Send,
{
    let planner = Mutex::new(Planner {
        next,
        sequence: 0,
        ended: false,
    });
    let finisher = Mutex::new(Finisher {
        finish,
        waiting: BTreeMap::new(),
        issued: 0,
        done: 0,
        stopped: false,
        error: None,
    });
    let moved = Condvar::new();
    let one_thread = || {
        let _guard = StopOnPanic {
            finisher: &finisher,
            moved: &moved,
        };
        let mut buffer = vec![0u8; buffer];
        let result = worker(&planner, &finisher, &moved, cancel, &work, &mut buffer);
        if let Err(error) = result {
            let mut state = lock(&finisher);
            state.stopped = true;
            state.error.get_or_insert(error);
            moved.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, MAX_THREADS) {
            scope.spawn(one_thread);
        }
        one_thread();
    });
    match finisher
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .error
    {
        Some(error) => Err(error),
        None => cancel.check(),
    }
}

/// A callback of the caller that panics must not leave the other threads waiting for its result.
struct StopOnPanic<'a, O, F> {
    finisher: &'a Mutex<Finisher<O, F>>,
    moved: &'a Condvar,
}

impl<O, F> Drop for StopOnPanic<'_, O, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(self.finisher).stopped = true;
            self.moved.notify_all();
        }
    }
}

fn worker<I, O, N, W, F>(
    planner: &Mutex<Planner<N>>,
    finisher: &Mutex<Finisher<O, F>>,
    moved: &Condvar,
    cancel: &CancelFlag,
    work: &W,
    buffer: &mut [u8],
) -> Result<()>
where
    N: FnMut() -> Result<Option<I>>,
    W: Fn(I, &mut [u8]) -> Result<O>,
    F: FnMut(O) -> Result<()>,
{
    loop {
        // Waits while suspended; no item is held here, so nobody waits for this thread meanwhile.
        cancel.check()?;
        let mut state = lock(finisher);
        while !state.stopped && state.issued >= state.done + AHEAD {
            state = moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return Ok(());
        }
        state.issued += 1;
        drop(state);

        let (sequence, item) = {
            let mut plan = lock(planner);
            let item = if plan.ended { None } else { (plan.next)()? };
            let Some(item) = item else {
                plan.ended = true;
                return Ok(());
            };
            plan.sequence += 1;
            (plan.sequence - 1, item)
        };
        let result = work(item, buffer)?;

        let mut state = lock(finisher);
        state.waiting.insert(sequence, result);
        while !state.stopped {
            let done = state.done;
            let Some(result) = state.waiting.remove(&done) else {
                break;
            };
            (state.finish)(result)?;
            state.done += 1;
        }
        moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn results_come_in_order_whatever_the_threads_do() {
        let mut n = 0u64;
        let mut seen = Vec::new();
        run(
            8,
            1,
            &CancelFlag::new(),
            || {
                n += 1;
                Ok((n <= 1000).then_some(n))
            },
            |i, _| {
                if i % 7 == 0 {
                    std::thread::yield_now();
                }
                Ok(i * 2)
            },
            |o| {
                seen.push(o);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, (1..=1000).map(|i| i * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_ends_all_threads() {
        for place in 0..3 {
            let mut n = 0u64;
            let result = run(
                4,
                1,
                &CancelFlag::new(),
                || {
                    n += 1;
                    if place == 0 && n == 300 {
                        Err(Error::invalid("next"))
                    } else {
                        Ok(Some(n))
                    }
                },
                |i, _| {
                    if place == 1 && i == 300 {
                        Err(Error::invalid("work"))
                    } else {
                        Ok(i)
                    }
                },
                |o| {
                    if place == 2 && o == 300 {
                        Err(Error::invalid("finish"))
                    } else {
                        Ok(())
                    }
                },
            );
            assert!(matches!(result, Err(Error::Invalid { .. })), "{place}");
        }
    }

    #[test]
    fn a_panic_in_one_thread_ends_the_others() {
        let result = std::panic::catch_unwind(|| {
            let mut n = 0u64;
            run(
                4,
                1,
                &CancelFlag::new(),
                || {
                    n += 1;
                    Ok(Some(n))
                },
                |i, _| Ok(i),
                |o| {
                    assert!(o < 50, "as intended");
                    Ok(())
                },
            )
        });
        assert!(result.is_err());
    }

    #[test]
    fn a_cancelled_run_ends_with_cancelled_and_a_suspended_one_finishes_after_resume() {
        let flag = CancelFlag::new();
        let count = AtomicU64::new(0);
        let result = run(
            3,
            1,
            &flag,
            || Ok(Some(())),
            |(), _| {
                if count.fetch_add(1, Ordering::Relaxed) == 100 {
                    flag.cancel();
                }
                Ok(())
            },
            |()| Ok(()),
        );
        assert!(matches!(result, Err(Error::Cancelled)));

        let flag = CancelFlag::new();
        flag.suspend();
        let resumer = flag.clone();
        let handle = std::thread::spawn(move || resumer.resume());
        let mut left = 10;
        run(
            2,
            1,
            &flag,
            || {
                left -= 1;
                Ok((left > 0).then_some(()))
            },
            |(), _| Ok(()),
            |()| Ok(()),
        )
        .unwrap();
        handle.join().unwrap();
    }
}
