//! The worker's decisions as sans-IO state machines: residency, ledger, batching, answers.
