//! Whom an encrypted connection to a collector trusts.

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};

/// With the system's authorities, none where there are none: nobody is trusted then.
pub(crate) fn trusting_the_system() -> ClientConfig {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    trusting(store)
}

/// For connections that are not encrypted.
pub(crate) fn trusting_nobody() -> ClientConfig {
    trusting(RootCertStore::empty())
}

fn trusting(store: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(store)
        .with_no_client_auth()
}
