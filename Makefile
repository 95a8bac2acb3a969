# Recipes are the CI: .ci/run calls these.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# The router of the demo: bird or frr.
ROUTER ?= bird
FUZZ_SECONDS ?= 60
# More arguments for the benchmarks.
BENCH ?=

bin := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/debug
lab := $(bin)/portolan-lab
bench := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release/portolan-bench

.PHONY: setup build demo demo-down test lint fuzz bench bench-quick

setup: ## install packages, build the lab, build Kubernetes and Helm (once per version, into the user's cache)
	tests/lab/setup.sh
	cargo build --locked -p portolan-lab
	$(lab) binaries

build: ## build the product and the lab
	cargo build --locked

demo: setup build ## a cluster with a router and a client: install, expose, ask; it stays up. ROUTER=frr takes FRR
	$(lab) demo --router $(ROUTER)

demo-down: ## remove every trace of the demo
	@if [ -x $(lab) ]; then $(lab) down; else cargo run --locked -q -p portolan-lab -- down; fi

test: setup ## every test; those in the lab need root
	cargo test --locked --workspace

bench: setup ## everything of docs/performance.md, beside the real kube-proxy: about 40 minutes on a quiet machine
	cargo build --locked --release -p portolan -p portolan-bench
	$(bench) --docs docs $(BENCH)
	cargo bench --locked $(addprefix -p portolan-,plan dataplane nft bgp) --bench plan --bench diff --bench encode

bench-quick: setup ## the same at 1,000 Services, in two minutes. BENCH='--subject portolan' leaves kube-proxy out
	cargo build --locked --release -p portolan -p portolan-bench
	$(bench) --quick --size 1000x3 $(BENCH)

lint: ## formatting, clippy, cargo-deny
	.ci/lint

fuzz: ## each fuzz target for a minute
	fuzz=$$(.ci/cargo-tool cargo-fuzz 0.13.2); \
	for source in tests/fuzz/fuzz_targets/*.rs; do \
	  target=$$(basename $$source .rs); \
	  mkdir -p tests/fuzz/corpus/$$target; \
	  RUSTC_BOOTSTRAP=1 $$fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target \
	    tests/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 </dev/null; \
	done
