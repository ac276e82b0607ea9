.PHONY: help demo test test-deploy check bench build image clean
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

bench: ## dispatcher against JetStream, decisions, swaps, copies of weights, pauses when parts die, engine against memory and llama.cpp, policies against each other
	@deploy/bench.sh

build: ## the release binary
	cargo build --release -p flotilla-cli

image: ## the image flotilla:latest, and passwords for deploy/compose.yaml
	@deploy/image.sh

clean: ## removes what was built, installed and written here
	cargo clean
	rm -rf .venv .venv.lock .venv-bench .venv-bench.lock .flotilla
