//! The NATS side of the protocol: connection, journal, submitting a request and following its events.
