//! Work in order for each request, and at once for different ones.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;

use flotilla_protocol::RequestId;
use tokio::task::{JoinError, JoinSet};

type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One lane for each request: its jobs run one after the other, each as a task. Dropping the lanes aborts
/// what runs and forgets what waits. Bounded by whoever pushes: a request has a handful of jobs.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    tasks: JoinSet<(RequestId, T)>,
    /// A request is a key while a job of it runs.
    waiting: HashMap<RequestId, VecDeque<Waiting<T>>>,
}

struct Waiting<T>(Job<T>);

impl<T: Send + 'static> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            waiting: HashMap::new(),
        }
    }

    /// Runs a job when all earlier ones of the request are done.
    pub(crate) fn push(&mut self, request: RequestId, job: impl Future<Output = T> + Send + 'static) {
        match self.waiting.get_mut(&request) {
            Some(waiting) => waiting.push_back(Waiting(Box::pin(job))),
            None => {
                self.waiting.insert(request.clone(), VecDeque::new());
                self.start(request, Box::pin(job));
            }
        }
    }

    /// The next job that is done; `None` while there is no job. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<(RequestId, T), JoinError>> {
        let (request, outcome) = match self.tasks.join_next().await? {
            Ok(done) => done,
            Err(error) => return Some(Err(error)),
        };
        let next = self.waiting.get_mut(&request).and_then(VecDeque::pop_front);
        match next {
            Some(Waiting(job)) => self.start(request.clone(), job),
            None => {
                self.waiting.remove(&request);
            }
        }
        Some(Ok((request, outcome)))
    }

    fn start(&mut self, request: RequestId, job: Job<T>) {
        self.tasks.spawn(async move { (request, job.await) });
    }
}

impl<T> std::fmt::Debug for Waiting<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn request(name: &str) -> RequestId {
        RequestId::new(name).unwrap()
    }

    #[tokio::test]
    async fn jobs_of_one_request_keep_their_order_and_do_not_hold_up_another() {
        let mut lanes = Lanes::new();
        let (open, gate) = oneshot::channel::<()>();
        lanes.push(request("a"), async move {
            gate.await.unwrap();
            1
        });
        lanes.push(request("a"), async { 2 });
        lanes.push(request("b"), async { 3 });
        assert_eq!(lanes.next().await.unwrap().unwrap(), (request("b"), 3));
        open.send(()).unwrap();
        assert_eq!(lanes.next().await.unwrap().unwrap(), (request("a"), 1));
        assert_eq!(lanes.next().await.unwrap().unwrap(), (request("a"), 2));
        assert!(lanes.next().await.is_none());
        assert!(lanes.waiting.is_empty());
    }
}
