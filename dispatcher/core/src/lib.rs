//! The dispatcher's decisions as a sans-IO state machine.
