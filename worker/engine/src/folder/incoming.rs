//! Files that may still be on their way.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::Path;

/// What is known of files that come while they are read. They have their full length from the beginning; nothing in
/// them is read before it is there.
pub trait Incoming: Debug + Sync {
    /// Waits until bytes of a file, which goes by its name in the folder, may be read. Threads that read wait here,
    /// so it has to return, with an error, when whoever takes what is read has had enough.
    ///
    /// # Errors
    /// They do not come.
    fn wait_for(&self, file: &Path, bytes: Range<u64>) -> io::Result<()>;

    /// When about they will be there, compared with others: what has a smaller number is read first.
    fn turn(&self, file: &Path, bytes: Range<u64>) -> usize;
}

/// Of files that are all there.
#[derive(Clone, Copy, Debug)]
pub struct AllHere;

impl Incoming for AllHere {
    fn wait_for(&self, _file: &Path, _bytes: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn turn(&self, _file: &Path, _bytes: Range<u64>) -> usize {
        0
    }
}
