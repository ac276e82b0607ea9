//! Tensors' bytes, read ahead of who takes them.
//!
//! Some threads read pieces of the files into buffers, which go to whoever places them and come back. A disk is
//! at its best with several reads under way, and the buffers are few and used again: memory that is touched for
//! the first time costs more than the reading. So a load takes as long as the slower of disk and placing, and
//! never has more of the model on the host than the buffers hold.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{AllHere, FolderTensor, Incoming, ModelError, ModelFolder};
use crate::TensorInfo;
use crate::tensor::PANEL_ROWS;

/// A part of a tensor that has been read. Dropping it gives its buffer to the next one.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The tensor.
    pub info: &'a TensorInfo,
    /// Where the piece starts in the tensor.
    pub offset_bytes: usize,
    len_bytes: usize,
    buffer: Buffer<'a>,
}

type Read<'a> = Result<Piece<'a>, ModelError>;

impl Piece<'_> {
    /// What was read.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes[..self.len_bytes]
    }
}

/// The pieces of a folder, each once, about in load order. What ends them early ends the reading.
#[derive(Debug)]
pub struct Pieces<'a> {
    read: Receiver<Read<'a>>,
    shared: &'a Shared<'a>,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, ModelError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Every reader has gone when nothing is left to be read.
        self.read.recv().ok()
    }
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl<C> ModelFolder<C> {
    /// Reads all tensors while `take` takes them, 16 MiB ahead at most. Reading begins before `take` asks for
    /// anything; once the pieces are dropped no other read begins, and those under way are waited for.
    pub fn read_ahead<T>(&self, take: impl FnOnce(Pieces<'_>) -> T) -> T {
        self.read_ahead_of(|_| true, &AllHere, take)
    }

    /// The same of some of the tensors, for a device that has not all of them, and of files that may be on their way:
    /// what comes first is read first.
    pub fn read_ahead_of<T>(
        &self,
        wants: impl Fn(&TensorInfo) -> bool,
        incoming: &dyn Incoming,
        take: impl FnOnce(Pieces<'_>) -> T,
    ) -> T {
        self.read_within(LIMITS, wants, incoming, take)
    }

    fn read_within<T>(
        &self,
        limits: Limits,
        wants: impl Fn(&TensorInfo) -> bool,
        incoming: &dyn Incoming,
        take: impl FnOnce(Pieces<'_>) -> T,
    ) -> T {
        let parts = self
            .tensors()
            .filter(|tensor| wants(tensor.info))
            .flat_map(|tensor| parts(tensor, limits.buffer_bytes));
        let mut parts: Vec<Part<'_>> = parts.collect();
        parts.sort_by_cached_key(|part| part.tensor.turn(part.offset_bytes, part.len_bytes, incoming));
        let shared = Shared::new(parts, limits, incoming);
        thread::scope(|scope| {
            // Room for what is in all buffers and an error of each reader, so that nobody waits to hand over.
            let (sender, read) = sync_channel(limits.buffers + limits.readers);
            let pieces = Pieces {
                read,
                shared: &shared,
            };
            for reader in 0..limits.readers {
                let name = format!("read-{reader}");
                let (of_thread, shared) = (sender.clone(), &shared);
                let started = thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, move || shared.read(&of_thread));
                if let Err(source) = started {
                    shared.tell(&sender, Err(ModelError::NoThread { source }));
                }
            }
            drop(sender);
            take(pieces)
        })
    }
}

/// What the readers of one load share.
#[derive(Debug)]
struct Shared<'a> {
    state: Mutex<State<'a>>,
    changed: Condvar,
    limits: Limits,
    incoming: &'a dyn Incoming,
}

#[derive(Debug)]
struct State<'a> {
    /// What nobody reads yet, the first one last.
    waiting: Vec<Part<'a>>,
    /// Buffers that nobody uses.
    free: Vec<Vec<u8>>,
    is_ended: bool,
}

/// What is read at once.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    tensor: FolderTensor<'a>,
    offset_bytes: usize,
    len_bytes: usize,
}

#[derive(Debug)]
struct Buffer<'a> {
    bytes: Vec<u8>,
    shared: &'a Shared<'a>,
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.shared.state().free.push(std::mem::take(&mut self.bytes));
        self.shared.changed.notify_one();
    }
}

impl<'a> Shared<'a> {
    fn new(mut parts: Vec<Part<'a>>, limits: Limits, incoming: &'a dyn Incoming) -> Self {
        parts.reverse();
        Self {
            state: Mutex::new(State {
                waiting: parts,
                free: vec![Vec::new(); limits.buffers],
                is_ended: false,
            }),
            changed: Condvar::new(),
            limits,
            incoming,
        }
    }

    /// Reads parts until none is left, or one cannot be read.
    fn read(&'a self, pieces: &SyncSender<Read<'a>>) {
        while let Some((part, mut buffer)) = self.next() {
            if buffer.bytes.is_empty() {
                buffer.bytes = vec![0; self.limits.buffer_bytes];
            }
            let target = &mut buffer.bytes[..part.len_bytes];
            let read = part.tensor.read_at(part.offset_bytes, target, self.incoming);
            let has_failed = read.is_err();
            self.tell(
                pieces,
                read.map(|()| Piece {
                    info: part.tensor.info,
                    offset_bytes: part.offset_bytes,
                    len_bytes: part.len_bytes,
                    buffer,
                }),
            );
            if has_failed {
                return;
            }
        }
    }

    /// The next part to read and a buffer for it; waits for one.
    fn next(&'a self) -> Option<(Part<'a>, Buffer<'a>)> {
        let mut state = self.state();
        loop {
            if state.is_ended || state.waiting.is_empty() {
                return None;
            }
            if let Some(bytes) = state.free.pop() {
                let part = state.waiting.pop()?;
                if state.waiting.is_empty() {
                    // Those who wait for a buffer have nothing to wait for any more.
                    self.changed.notify_all();
                }
                return Some((part, Buffer { bytes, shared: self }));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands over what was read, or the first thing that went wrong, which ends the reading.
    fn tell(&self, pieces: &SyncSender<Read<'a>>, read: Read<'a>) {
        if read.is_err() {
            self.end();
        }
        // Who takes the pieces may have had enough of them.
        let _ = pieces.send(read);
    }

    fn end(&self) {
        self.state().is_ended = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        // Nothing that happens under the lock can be left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a tensor is read at once: as many whole groups of rows as a buffer holds, so that the loader need not
/// wait for the rest of one.
fn parts(tensor: FolderTensor<'_>, buffer_bytes: usize) -> impl Iterator<Item = Part<'_>> {
    let columns = tensor.info.shape.last().copied().unwrap_or(1);
    let group_bytes = columns * tensor.info.dtype.size_bytes() * PANEL_ROWS;
    let part_bytes = match buffer_bytes.checked_div(group_bytes) {
        None | Some(0) => buffer_bytes,
        Some(groups) => groups * group_bytes,
    };
    let len_bytes = tensor.len_bytes();
    (0..len_bytes).step_by(part_bytes).map(move |offset_bytes| Part {
        tensor,
        offset_bytes,
        len_bytes: part_bytes.min(len_bytes - offset_bytes),
    })
}

/// How far ahead is read, and by how many.
#[derive(Clone, Copy, Debug)]
struct Limits {
    readers: usize,
    buffers: usize,
    buffer_bytes: usize,
}

/// Measured on a disk of 2.7 GB/s: one reader reaches 70 to 80 % of that and four all of it; half the buffers make it a
/// tenth slower, twice as many cost more for their own memory than they gain.
const LIMITS: Limits = Limits {
    readers: 4,
    buffers: 8,
    buffer_bytes: 2 << 20,
};

#[cfg(test)]
mod tests;
