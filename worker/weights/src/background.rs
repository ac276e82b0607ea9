//! Threads that give way: what a copy costs its sender's processor is not to be felt by requests.

use std::thread;

use rustix::process::setpriority_process;
use tokio::sync::oneshot;

/// Does something that blocks or computes, on a thread of its own which gets a core's time when nothing else wants it,
/// and little otherwise. For work of milliseconds and more: a thread is made for it. Dropped, the work goes on and its
/// result is lost. How much is under way at once is bounded by who calls.
///
/// # Panics
/// The work panics, or the system gives no thread.
pub(crate) async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    let run = move || {
        give_way();
        // Nobody may wait any more.
        drop(done.send(work()));
    };
    let spawned = thread::Builder::new().name("weights".to_owned()).spawn(run);
    spawned.expect("the system gives a thread");
    result.await.expect("work in the background does not panic")
}

/// Makes the calling thread one that gives way to others of the machine. On Linux a priority is a thread's; elsewhere it
/// would be that of all of us, and nothing is done.
pub fn give_way() {
    if cfg!(target_os = "linux") {
        // Refused, it is as urgent as the rest, which is slower for others and right all the same.
        let _refused = setpriority_process(None, NICE);
    }
}

/// The least urgent. Beside one busy thread of the usual priority each such thread gets 1.5 % of a core: a copy has
/// five of them, which is little for whoever waits for tokens, and enough that a copy from a worker that is never idle
/// comes to its end.
const NICE: i32 = 19;

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn work_in_the_background_gives_way_and_who_asks_for_it_does_not() {
        let own = getpriority_process(None).unwrap();
        let other = in_background(|| getpriority_process(None).unwrap()).await;
        assert_eq!(getpriority_process(None).unwrap(), own);
        assert_eq!(other, NICE);
    }
}
