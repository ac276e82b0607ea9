//! `flotilla health`: whether a role on this machine is ready, for supervisors that can only run programs.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::http::{DISPATCHER_PORT, WORKER_PORT};

/// Arguments of `flotilla health`.
#[derive(Debug, Args)]
pub(crate) struct HealthArguments {
    /// Which of them
    role: Role,
}

/// A role that tells its health.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Dispatcher,
    Worker,
}

/// What is told, for machines.
#[derive(Debug, Serialize)]
struct Health {
    ready: bool,
    told: String,
}

/// Asks the role's `/readyz`, where its configuration says that it is.
///
/// # Errors
/// When nobody answers there.
pub(crate) fn run(context: &Context, arguments: &HealthArguments) -> anyhow::Result<Exit> {
    let config = &context.config;
    let (listen, port) = match arguments.role {
        Role::Dispatcher => (config.dispatcher.http.listen, DISPATCHER_PORT),
        Role::Worker => (config.worker.http.listen, WORKER_PORT),
    };
    let address = listen.map_or((Ipv4Addr::LOCALHOST, port).into(), reachable);
    let answer = ask(address).with_context(|| format!("nobody tells a role's health on {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let health = Health {
        ready: head.split(' ').nth(1) == Some("200"),
        told: body.trim().to_owned(),
    };
    context.format.print_line(&health, &health.told)?;
    Ok(match health.ready {
        true => Exit::Ok,
        false => Exit::Failed,
    })
}

/// Where somebody on this machine reaches who listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listen.port())
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Supervisors have less patience.
const PATIENCE: Duration = Duration::from_secs(3);
/// Some lines.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_this_machine() {
        for (listen, asked) in [
            ("0.0.0.0:9470", "127.0.0.1:9470"),
            ("[::]:9470", "[::1]:9470"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
