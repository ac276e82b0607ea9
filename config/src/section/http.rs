//! What each role tells of itself over HTTP.

use std::net::SocketAddr;

use crate::rule::{SocketAddress, Switch};
use crate::schema::{optional, required, section};

section! {
    /// `[dispatcher.http]`: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever supervises the process.
    pub struct DispatcherHttp at "dispatcher.http" {
        /// Whether they are served. Default true.
        enabled: bool = "enabled", required(Switch, true);

        /// Where, as an IP address and a port; anybody who reaches it can read it. Unset: on 127.0.0.1 at 9470, or at
        /// the next free port, which the log names.
        listen: Option<SocketAddr> = "listen", optional(SocketAddress);
    }
}

section! {
    /// `[worker.http]`: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever supervises the process.
    pub struct WorkerHttp at "worker.http" {
        /// Whether they are served. Default true.
        enabled: bool = "enabled", required(Switch, true);

        /// Where, as an IP address and a port; anybody who reaches it can read it. Unset: on 127.0.0.1 at 9480, or at
        /// the next free port, which the log names.
        listen: Option<SocketAddr> = "listen", optional(SocketAddress);
    }
}
