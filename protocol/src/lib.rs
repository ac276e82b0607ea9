//! Wire types, ids, units, subjects and codecs of Flotilla; no I/O and no clock.
