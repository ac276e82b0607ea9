//! The rule of addresses to listen at.

use std::net::SocketAddr;

use figment::value::Value;

use super::{Rule, Wording, filled, wrong_kind};
use crate::Problem;

/// An IP address and a port.
pub(crate) struct SocketAddress;

impl Rule for SocketAddress {
    type Out = SocketAddr;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<SocketAddr, Problem> {
        let text = filled(value, EXPECTED)?;
        text.parse().map_err(|_| wrong_kind(EXPECTED, value))
    }
}

const EXPECTED: &str = "an IP address and a port, such as \"127.0.0.1:9470\" or \"0.0.0.0:9470\"";
