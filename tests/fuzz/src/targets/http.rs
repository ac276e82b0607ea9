//! The HTTP side of a role, over real connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use flotilla_telemetry::{Listen, Server, Telemetry};

use crate::corpus::Corpus;
use crate::probe::Verdict;
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    let samples = [
        "GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: text/plain;version=0.0.4\r\n\r\n",
        "HEAD /livez HTTP/1.0\r\n\r\n",
        "POST /readyz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ];
    let target = Target::new("http", Corpus::new(Format::Text, samples), |probe, input| {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(|| {
            let listen = Listen::At(([127, 0, 0, 1], 0).into());
            Server::start(listen, Telemetry::off()).expect("a port is free")
        });
        Verdict::from(probe.measure(|| ask(server, input)))
    });
    // The server has a thread of its own: that it goes on answering is what is seen here, and its memory is bounded
    // by the 8 KiB that it reads of a head.
    vec![target.weighing(1)]
}

/// Whether an answer says that all is well. The server may end a connection before all was sent.
fn ask(server: &Server, input: &[u8]) -> bool {
    let mut stream = TcpStream::connect(server.address()).expect("the server accepts connections");
    stream
        .set_read_timeout(Some(SILENCE_MAX))
        .expect("a time above 0");
    let sent = stream
        .write_all(input)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let is_silent = |error: &std::io::Error| {
        matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        )
    };
    assert!(
        !read.as_ref().is_err_and(is_silent),
        "the server is silent for {SILENCE_MAX:?}"
    );
    sent.is_ok() && read.is_ok() && answer.starts_with(b"HTTP/1.1 200")
}

/// Longer than the server waits for a head.
const SILENCE_MAX: Duration = Duration::from_secs(30);
