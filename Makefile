# Everything one does with the source. Each target does first what it needs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
MEF   := target/release/mef
OUT   ?= report

# What building and the demo need; the tests' programs are listed in .ci/packages.
# The last three are for ports on DPDK; `make build FEATURES=--no-default-features` does without.
BUILD_PACKAGES := gcc libc6-dev make iproute2 $(if $(findstring --no-default-features,$(FEATURES)),,libclang-dev libdpdk-dev pkg-config)
FEATURES       ?=
RUST_MINIMUM   := 1.85

STEP = @printf '\n\033[1m==> %s\033[0m\n'

# Measurements would disturb each other.
.NOTPARALLEL:

.PHONY: help deps test-deps rust build demo test unit-tests system-tests gate bench pages micro counts side-by-side explore fuzz lint clean root

help: ## Show this list
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install what building and the demo need (Debian packages, as root or through sudo)
	@.ci/install $(BUILD_PACKAGES)
	@$(MAKE) rust

test-deps: ## Install what the tests need beside that
	@.ci/install $(BUILD_PACKAGES) $$(grep -v '^#' .ci/packages)
	@$(MAKE) rust

rust:
	@found=$$($(CARGO) --version 2>/dev/null | cut -d' ' -f2) || true; \
	if [ -z "$$found" ]; then \
		echo 'error: no cargo. Install Rust $(RUST_MINIMUM) or newer with rustup, then open a new shell.' >&2; exit 1; \
	fi; \
	if [ "$$(printf '%s\n' $(RUST_MINIMUM) "$$found" | sort -V | head -n 1)" != $(RUST_MINIMUM) ]; then \
		echo "error: cargo $$found is too old, $(RUST_MINIMUM) or newer is needed: run \`rustup update\`." >&2; exit 1; \
	fi

build: deps ## Build target/release/mef
	$(STEP) 'Build (a few minutes the first time)'
	@$(CARGO) build --release --locked $(FEATURES)

# The demo's namespaces need root; nothing else of it does.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

root:
	@[ "$$(id -u)" = 0 ] || { echo 'error: network namespaces need root: run it again as root, or with sudo -E.' >&2; exit 1; }

# Three topologies, plain Linux with CUBIC and BBR against the two MEF routers; 9 runs of 15 s.
DEMO := clean-200ms lossy-200ms 4g-200ms

demo: build ## Show what the routers do: three lines, CUBIC, BBR and MEF (under 5 minutes after the build)
	@[ -z '$(SUDO)' ] || command -v sudo >/dev/null || { echo 'error: network namespaces need root, and there is no sudo: run it again as root.' >&2; exit 1; }
	@mkdir -p $(OUT)/demo; \
	n=0; for t in $(DEMO); do \
		n=$$((n + 1)); \
		printf '\n\033[1m==> %s of $(words $(DEMO)): %s\033[0m\n' $$n $$t; \
		$(SUDO) $(MEF) lab run topologies/$$t.toml --transport cubic,bbr,mef --seconds 15 --json $(OUT)/demo/$$t.json >/dev/null; \
	done
	$(STEP) 'Results'
	@$(MEF) lab report $(DEMO:%=$(OUT)/demo/%.json) --report $(OUT)/demo
	@echo 'Open the report in a browser: it shows goodput over time, the queue, and how long each transfer took.'

test: root test-deps lint unit-tests counts system-tests gate ## Run every test (under 25 minutes on two cores)
	$(STEP) 'All tests passed'

lint: rust ## Formatting, and clippy without a warning
	$(STEP) 'Lint'
	@if $(CARGO) fmt --version >/dev/null 2>&1; then $(CARGO) fmt --all --check; \
	else echo 'note: formatting not checked, no rustfmt: `rustup component add rustfmt`' >&2; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then $(CARGO) clippy --workspace --all-targets --locked -- -D warnings; \
	else echo 'note: no lints, no clippy: `rustup component add clippy`' >&2; fi
	@$(CARGO) check --no-default-features --locked

# Tests that measure time or need the machine's interfaces run one at a time, behind the others.
SYSTEM_CRATES := mef mef-io mef-lab

# The same cases each time, so that a result can be had again; `make explore` draws new ones.
unit-tests: export PROPTEST_RNG_SEED ?= 1
unit-tests: rust
	$(STEP) 'Unit and property tests'
	@$(CARGO) test --workspace --locked $(SYSTEM_CRATES:%=--exclude %)
	@$(CARGO) test --locked $(SYSTEM_CRATES:%=-p %) --lib --bins

system-tests: root build
	$(STEP) 'Real kernels, real programs, whole routers (one test at a time)'
	@MEF_BIN=$(abspath $(MEF)) $(CARGO) test --locked $(SYSTEM_CRATES:%=-p %) --test '*' -- --test-threads=1

# Topology and the least share of the ceiling: what a release is measured by has its place in `make bench`.
# poor-access carries bytes in both directions: two lines, one of them from a CUBIC host that loses.
GATE := clean-200ms:0.95 lossy-200ms:0.95 very-lossy-200ms:0.92 poor-access:1.6

gate: root build
	$(STEP) 'The main job: goodput over long lines, clean and lossy'
	@mkdir -p $(OUT)/gate; \
	for g in $(GATE); do \
		t=$${g%:*}; \
		$(MEF) lab run topologies/$$t.toml --transport mef --seconds 24 --json $(OUT)/gate/$$t.json >/dev/null; \
		$(MEF) lab check $(OUT)/gate/$$t.json --goodput $${g#*:} --queue 10ms; \
	done

bench: root build micro ## Measure the figures of the README's table anew, into report/bench (about an hour and a half)
	@benches/run $(MEF) $(OUT)/bench

pages: root build ## Load times of a page with 60 objects in Chromium (about ten minutes)
	@.ci/install chromium nginx-light openssl python3
	@benches/pages $(MEF) $(OUT)/bench

# Which file cargo made of the micro-benchmarks.
MICRO = $$($(CARGO) bench --locked -p mef-dataplane --bench micro --no-run --message-format=json | sed -n 's/.*"name":"micro".*"executable":"\([^"]*\)".*/\1/p')

micro: rust ## Measure what a packet costs without I/O: time, with criterion
	$(STEP) 'Micro-benchmarks'
	@$(CARGO) bench --locked -p mef-dataplane --bench micro

counts: rust ## Compare the instructions of the same operations with the committed counts
	$(STEP) 'Instructions per operation'
	@benches/counts "$(MICRO)"

# Needs wireguard-go, wireguard-tools, haproxy, iperf3, ethtool and tcpdump from Debian, and boringtun-cli.
side-by-side: root build ## TCP through two routers beside other tunnels, splitting beside haproxy (about half an hour)
	@command -v boringtun-cli >/dev/null || $(CARGO) install --locked boringtun-cli
	@benches/tunnels $(MEF) benches/results && benches/draw

CASES ?= 20000

explore: rust ## Property tests on CASES (20,000) new cases each
	@PROPTEST_CASES=$(CASES) $(CARGO) test --release --workspace --locked $(SYSTEM_CRATES:%=--exclude %)

# Each for this long, one after the other; what it finds is left in report/fuzz. No sanitizer: the code
# has no unsafe of its own, overflows and assertions are checked, and it runs twenty times as fast.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(notdir $(basename $(wildcard dataplane/fuzz/fuzz_targets/*.rs)))

fuzz: rust ## Fuzz everything that parses, FUZZ_SECONDS (600) for each of FUZZ_TARGETS (all)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@for t in $(FUZZ_TARGETS); do \
		printf '\n\033[1m==> %s for $(FUZZ_SECONDS) s\033[0m\n' $$t; \
		mkdir -p $(OUT)/fuzz/$$t; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none --fuzz-dir dataplane/fuzz $$t \
			$(OUT)/fuzz/$$t dataplane/fuzz/corpus/$$t -- \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=20 -verbosity=0 -print_final_stats=1; \
	done

clean: ## Remove what was built and measured
	@$(CARGO) clean
	@rm -rf $(OUT)
