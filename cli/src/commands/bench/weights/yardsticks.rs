//! What the machine can do without any of us: sockets, disk, hash.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;

use super::figures::{Measure, Samples};
use super::model::Model;
use crate::commands::bench::disk;

/// Measures all of them once. Blocks.
///
/// # Errors
/// When a socket or a file fails.
#[expect(clippy::cast_precision_loss, reason = "bytes stay far below 2^52")]
pub(super) fn measure(model: &Model, folder: &Path, samples: &mut Samples) -> anyhow::Result<()> {
    let bytes = model.bytes.len();
    samples.add(Measure::Tcp, over_tcp(bytes, Way::Straight).context("loopback")?);
    samples.add(
        Measure::TcpRelay,
        over_tcp(bytes, Way::Relayed).context("loopback")?,
    );
    let path = folder.join("yardstick");
    let written = write(&path, &model.bytes);
    samples.add(
        Measure::DiskWrite,
        written.with_context(|| format!("cannot write {}", path.display()))?,
    );
    samples.add(Measure::DiskRead, bytes as f64 / disk::read_bandwidth(&path)?);
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    let begun = Instant::now();
    std::hint::black_box(blake3::hash(&model.bytes));
    samples.add(Measure::Blake3, begun.elapsed().as_secs_f64());
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Straight,
    /// Through a thread that reads from one socket and writes to another.
    Relayed,
}

/// Seconds from the first byte written to the last one read.
fn over_tcp(bytes: usize, way: Way) -> io::Result<f64> {
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sink_address = sink.local_addr()?;
    let relay = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let first = match way {
        Way::Straight => sink_address,
        Way::Relayed => relay.local_addr()?,
    };
    let mut source = TcpStream::connect(first)?;
    thread::scope(|scope| {
        let relaying = (way == Way::Relayed).then(|| {
            scope.spawn(|| {
                let mut out = TcpStream::connect(sink_address)?;
                pass_on(relay.accept()?.0, &mut out)
            })
        });
        let sinking = scope.spawn(|| pass_on(sink.accept()?.0, &mut io::sink()));
        let begun = Instant::now();
        let buffer = vec![1; BUFFER_BYTES];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(buffer.len());
            source.write_all(&buffer[..part])?;
            left -= part;
        }
        drop(source);
        let arrived = sinking.join().expect("reading does not panic")?;
        let seconds = begun.elapsed().as_secs_f64();
        relaying
            .map(|relaying| relaying.join().expect("relaying does not panic"))
            .transpose()?;
        assert_eq!(arrived, bytes, "every byte arrives");
        Ok(seconds)
    })
}

fn pass_on(mut from: TcpStream, to: &mut dyn Write) -> io::Result<usize> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut passed = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(passed);
        }
        to.write_all(&buffer[..count])?;
        passed += count;
    }
}

/// Seconds until a file is on disk.
fn write(path: &Path, bytes: &[u8]) -> io::Result<f64> {
    let begun = Instant::now();
    let mut file = File::create(path)?;
    bytes.chunks(8 << 20).try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Larger ones leave the nearest cache.
const BUFFER_BYTES: usize = 256 << 10;
