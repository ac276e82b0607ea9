.PHONY: help demo test test-deploy check fuzz deny bench build image clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: ## a whole fleet on this machine, three questions, Ctrl-C to stop (DEMO_EXIT=1: stop at once)
	@deploy/demo.sh

test: ## everything: format, lints, unit and integration tests with a real nats-server
	@.ci/test.sh

test-deploy: ## the compose files with this machine's Docker engine; part of `make test` where there is one
	@.ci/test-deploy.sh

check: ## the fast loop: format, lints, tests that need no other process
	@.ci/check.sh

fuzz: ## ten million mutated inputs for every decoder of bytes from outside (FUZZ="--target NAME --seed N": others)
	cargo run --release -p flotilla-fuzz --bin fuzz -- --inputs 10000000 $(FUZZ)

deny: ## licences, sources, withdrawn and doubled versions of what we depend on, and known holes (that needs the network)
	@.ci/deny.sh

bench: ## dispatcher against JetStream, decisions, swaps, copies of weights, pauses when parts die, engine against memory and llama.cpp, policies against each other
	@deploy/bench.sh

build: ## the release binary
	cargo build --release -p flotilla-cli

image: ## the image flotilla:latest, and passwords for deploy/compose.yaml
	@deploy/image.sh

clean: ## removes what was built, installed and written here
	cargo clean
	rm -rf .venv .venv.lock .venv-bench .venv-bench.lock .flotilla
