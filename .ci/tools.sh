# Sourced by the other scripts: makes the build tools available, installs those that can be.

if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
    . "$HOME/.cargo/env"
fi
command -v cargo >/dev/null || { echo 'no cargo; install Rust from https://rustup.rs' >&2; exit 1; }

# Formatter and linter are components of the toolchain, and minimal installations lack them.
ensure_components() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        rustup component add rustfmt clippy
    fi
}

# Sets `runner` to nextest, or to cargo's own where that cannot be had, and with `leave_out BINARY NAME` `chosen` to what
# makes it leave out tests: those of a binary, or, as cargo knows no binaries, those whose names have this.
choose_runner() {
    runner=(cargo test --no-fail-fast)
    chosen=()
    leave_out() {
        [ "${#chosen[@]}" -gt 0 ] || chosen=(--)
        chosen+=(--skip "$2")
    }
    if ! cargo nextest --version >/dev/null 2>&1; then
        echo 'installing cargo-nextest' >&2
        cargo install cargo-nextest --locked || echo 'cargo-nextest cannot be installed; using cargo test' >&2
    fi
    if cargo nextest --version >/dev/null 2>&1; then
        runner=(cargo nextest run)
        leave_out() {
            local kept="${chosen[1]:+${chosen[1]} & }not binary($1)"
            chosen=(-E "$kept")
        }
        if [ -n "${CI:-}" ]; then runner+=(--profile ci); fi
    fi
}
