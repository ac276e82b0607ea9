//! Where the server listens.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use thiserror::Error;

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Here or nowhere.
    At(SocketAddr),
    /// On the loopback interface, at the first free port from this one on, or at any when many are taken: several
    /// roles of one machine need no settings.
    Near(u16),
}

/// The address cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen at {address}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

impl Listen {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`ListenError`]: the address is taken, or not ours.
    pub(crate) fn bind(self) -> Result<TcpListener, ListenError> {
        match self {
            Self::At(address) => bind(address),
            Self::Near(from) => {
                for port in from..from.saturating_add(TRIED_COUNT) {
                    match bind((Ipv4Addr::LOCALHOST, port).into()) {
                        Err(taken) if taken.source.kind() == io::ErrorKind::AddrInUse => {}
                        bound => return bound,
                    }
                }
                bind((Ipv4Addr::LOCALHOST, 0).into())
            }
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let bound = TcpListener::bind(address);
    bound.map_err(|source| ListenError { address, source })
}

/// Ports tried: more roles than this on one machine take any.
const TRIED_COUNT: u16 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_only_when_it_was_asked_for() {
        let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = Listen::At(address).bind().unwrap_err();
        assert_eq!(error.address, address);
        let near = Listen::Near(address.port()).bind().unwrap();
        assert_ne!(near.local_addr().unwrap(), address);
    }
}
