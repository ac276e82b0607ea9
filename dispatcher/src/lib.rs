//! The dispatcher's shell: JetStream, leader lease, admin services.
