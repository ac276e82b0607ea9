//! Threads that share an operation's parts: they spin briefly for the next one, then park.
//!
//! An operation of a decode step takes some ten microseconds, less than waking a thread does; so threads
//! that have just worked spin. A spinning thread takes a core from others, so it parks soon.
#![expect(
    unsafe_code,
    reason = "a borrowed closure is lent to threads that outlive the borrow"
)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A number of threads that work on one operation at a time; the caller's own is one of them.
///
/// Shared by all models of a device. Dropping it ends the threads.
pub struct CpuThreads {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held while an operation runs: there is one place for a task. A caller that finds it taken does its
    /// operation alone.
    running: Mutex<()>,
}

struct Worker {
    handle: JoinHandle<()>,
    is_parked: Arc<AtomicBool>,
}

struct Shared {
    /// Which operation runs and which of its parts is next: see [`Ticket`].
    ticket: AtomicU64,
    /// The operation that the ticket's number stands for. Written by the holder of `running` alone, while
    /// every part of the operation before is done.
    task: UnsafeCell<Option<Task>>,
    /// How many parts of the operation are done.
    done: AtomicUsize,
    /// The first panic of a part.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_ending: AtomicBool,
}

/// A closure whose borrows are kept alive by whoever waits for its last part.
#[derive(Clone, Copy)]
struct Task(*const (dyn Fn(usize) + Sync));

// SAFETY: the closure behind the pointer is `Sync`, so it may be called from any thread; that it is alive
// whenever it is called is argued where that happens.
unsafe impl Send for Task {}

// SAFETY: `task` is the only field that is not `Sync` by itself. It is written in `CpuThreads::run` before
// the ticket of its operation is published (release) and read after a part of that very operation was
// claimed (acquire); it is not written again before that part is done (see `Shared::work`).
unsafe impl Sync for Shared {}

/// An operation's number (its low bits), how many parts it has, and the next part that nobody has claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ticket {
    operation: u64,
    parts: u64,
    next: u64,
}

impl Ticket {
    const fn unpack(bits: u64) -> Self {
        Self {
            operation: bits >> (2 * PART_BITS),
            parts: bits >> PART_BITS & PARTS_MAX,
            next: bits & PARTS_MAX,
        }
    }

    const fn pack(self) -> u64 {
        self.operation << (2 * PART_BITS) | self.parts << PART_BITS | self.next
    }

    const fn is_used_up(self) -> bool {
        self.next == self.parts
    }
}

impl CpuThreads {
    /// Starts `count - 1` threads beside the caller's.
    ///
    /// # Panics
    /// The system has no thread left.
    pub fn new(count: NonZero<usize>) -> Self {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
            is_ending: AtomicBool::new(false),
        });
        let started = Arc::new(Barrier::new(count.get()));
        let workers = (1..count.get())
            .map(|index| Worker::start(index, &shared, &started))
            .collect();
        // What a thread allocates as it starts belongs here, not into the middle of somebody's step.
        started.wait();
        Self {
            shared,
            workers,
            running: Mutex::new(()),
        }
    }

    /// As many threads as the system offers this process cores.
    pub fn for_this_machine() -> Self {
        Self::new(thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN))
    }

    /// How many threads work on an operation.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once with each part `0..parts`, on any threads in any order, and waits for all of them.
    ///
    /// # Panics
    /// A part panicked; the others were finished first.
    pub(super) fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        let has_room = parts > 1 && parts as u64 <= PARTS_MAX && !self.workers.is_empty();
        let guard = match self.running.try_lock() {
            Ok(guard) if has_room => guard,
            Err(TryLockError::Poisoned(poisoned)) if has_room => poisoned.into_inner(),
            Ok(_) | Err(_) => return (0..parts).for_each(task),
        };
        self.publish(parts, task);
        self.shared
            .work(Ticket::unpack(self.shared.ticket.load(Ordering::Relaxed)).operation);
        self.shared.wait_until_done(parts);
        let panic = lock(&self.shared.panic).take();
        drop(guard);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn publish(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. The pointer is used by threads that have claimed a part, and
        // `run` does not return before every part is done.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        // SAFETY: `running` is held, so nobody else writes; every part of the operation before is done and
        // its ticket is used up, so nobody reads.
        unsafe { *self.shared.task.get() = Some(Task(task)) };
        self.shared.done.store(0, Ordering::Relaxed);
        let before = Ticket::unpack(self.shared.ticket.load(Ordering::Relaxed));
        let ticket = Ticket {
            operation: (before.operation + 1) & OPERATIONS_MAX,
            parts: parts as u64,
            next: 0,
        };
        // Both this and the look at `is_parked` are sequentially consistent, as are their counterparts in
        // `Worker::park`: either the worker sees the ticket or this sees that it parks.
        self.shared.ticket.store(ticket.pack(), Ordering::SeqCst);
        for worker in &self.workers {
            if worker.is_parked.load(Ordering::SeqCst) {
                worker.handle.thread().unpark();
            }
        }
    }
}

impl Drop for CpuThreads {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.handle.thread().unpark();
            // A worker's own code does not panic, and a part's panic was handed to the caller.
            worker.handle.join().expect("a worker ends when it is told to");
        }
    }
}

impl fmt::Debug for CpuThreads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CpuThreads")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Worker {
    fn start(index: usize, shared: &Arc<Shared>, started: &Arc<Barrier>) -> Self {
        let is_parked = Arc::new(AtomicBool::new(false));
        let (of_thread, shared, started) = (Arc::clone(&is_parked), Arc::clone(shared), Arc::clone(started));
        let handle = thread::Builder::new()
            .name(format!("cpu-{index}"))
            .spawn(move || {
                started.wait();
                Self::serve(&shared, &of_thread);
            })
            .expect("the system has room for a thread");
        Self { handle, is_parked }
    }

    fn serve(shared: &Shared, is_parked: &AtomicBool) {
        let mut served = 0;
        while let Some(operation) = Self::wait_for_operation(shared, is_parked, served) {
            shared.work(operation);
            served = operation;
        }
    }

    /// The number of an operation other than `served`, or none when the threads end.
    fn wait_for_operation(shared: &Shared, is_parked: &AtomicBool, served: u64) -> Option<u64> {
        let mut spin_start = Instant::now();
        loop {
            for _ in 0..SPINS_PER_LOOK {
                let ticket = Ticket::unpack(shared.ticket.load(Ordering::Acquire));
                if ticket.operation != served {
                    return Some(ticket.operation);
                }
                std::hint::spin_loop();
            }
            if shared.is_ending.load(Ordering::SeqCst) {
                return None;
            }
            if spin_start.elapsed() > SPIN_MAX {
                is_parked.store(true, Ordering::SeqCst);
                let ticket = Ticket::unpack(shared.ticket.load(Ordering::SeqCst));
                if ticket.operation == served && !shared.is_ending.load(Ordering::SeqCst) {
                    thread::park();
                }
                is_parked.store(false, Ordering::SeqCst);
                spin_start = Instant::now();
            }
        }
    }
}

impl Shared {
    /// Does parts of an operation until none is left, or until it is no longer the one that runs.
    fn work(&self, operation: u64) {
        while let Some(part) = self.claim(operation) {
            // SAFETY: a part was claimed and is not done yet. Until it is, `CpuThreads::run` waits in
            // `wait_until_done`: so the closure and what it borrows are alive, and nobody writes `task`. The
            // claim acquired what was written before the ticket was published.
            let task = unsafe { (*self.task.get()).expect("an operation has a task") };
            // SAFETY: as above.
            let task = unsafe { &*task.0 };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(part))) {
                lock(&self.panic).get_or_insert(panic);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn claim(&self, operation: u64) -> Option<usize> {
        let claimed = self
            .ticket
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                let ticket = Ticket::unpack(bits);
                (ticket.operation == operation && !ticket.is_used_up()).then_some(bits + 1)
            });
        let part = Ticket::unpack(claimed.ok()?).next;
        Some(usize::try_from(part).expect("parts were counted as usize"))
    }

    /// Spins, since the last parts are under way; yields when they take long, as their thread may need this
    /// very core.
    fn wait_until_done(&self, parts: usize) {
        let start = Instant::now();
        while self.done.load(Ordering::Acquire) < parts {
            if start.elapsed() < SPIN_MAX {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a thread spins for work: some operations of a decode step, and less than parking and waking cost.
const SPIN_MAX: Duration = Duration::from_micros(50);

/// How often a spinning thread looks for work between two looks at the clock.
const SPINS_PER_LOOK: u32 = 32;

const PART_BITS: u32 = 20;
const PARTS_MAX: u64 = (1 << PART_BITS) - 1;
const OPERATIONS_MAX: u64 = (1 << (u64::BITS - 2 * PART_BITS)) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(count: usize) -> CpuThreads {
        CpuThreads::new(NonZero::new(count).unwrap())
    }

    #[test]
    fn every_part_is_done_once_whatever_the_number_of_threads() {
        for count in 1..5 {
            let threads = threads(count);
            for parts in [0, 1, 2, 3, 7, 100] {
                for _ in 0..20 {
                    let calls: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                    threads.run(parts, &|part| {
                        calls[part].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn parked_threads_wake_up_for_the_next_operation() {
        let threads = threads(3);
        let all_parked = || {
            threads
                .workers
                .iter()
                .all(|worker| worker.is_parked.load(Ordering::SeqCst))
        };
        while !all_parked() {
            thread::yield_now();
        }
        // Each part waits for another one, so one thread alone could not finish.
        let barrier = Barrier::new(2);
        threads.run(2, &|_| {
            barrier.wait();
        });
    }

    #[test]
    fn panic_of_a_part_reaches_the_caller_after_all_parts_and_harms_nobody_else() {
        let threads = threads(3);
        let done = AtomicUsize::new(0);
        let run = || {
            threads.run(64, &|part| {
                assert_ne!(part, 13, "part thirteen");
                done.fetch_add(1, Ordering::Relaxed);
            });
        };
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("part thirteen"));
        assert_eq!(done.load(Ordering::Relaxed), 63);
        threads.run(8, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 71);
    }

    #[test]
    fn callers_at_the_same_time_both_get_their_work_done() {
        let threads = threads(2);
        let sums = [AtomicUsize::new(0), AtomicUsize::new(0)];
        thread::scope(|scope| {
            for sum in &sums {
                scope.spawn(|| {
                    for _ in 0..200 {
                        threads.run(5, &|part| {
                            sum.fetch_add(part, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == 2000));
    }
}
