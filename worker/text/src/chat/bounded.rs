//! Output that a template cannot make larger than allowed.

use std::io;

/// Collects text up to a limit.
pub(crate) struct BoundedWriter {
    bytes: Vec<u8>,
    limit_bytes: usize,
    overflowed: bool,
}

impl BoundedWriter {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit_bytes,
            overflowed: false,
        }
    }

    /// Whether more than the limit was to be written.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflowed
    }

    pub(crate) fn into_text(self) -> String {
        String::from_utf8(self.bytes).expect("templates and JSON write whole characters")
    }
}

impl io::Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit_bytes - self.bytes.len() {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
