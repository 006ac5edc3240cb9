# Every check and every build, by name. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

export VLLM_VERSION ?= 0.32.0
# Processes that run end-to-end scenarios at the same time. Each loads vLLM once (1.5 GB); a scenario computes on one thread.
E2E_PROCESSES ?= 2
# Extra arguments for pytest, as in: make test-e2e PYTEST_ARGS="-k hybrid"
PYTEST_ARGS ?=
SOAK_ARGS ?= --minutes 10 --seed 1
# Names of tests on a real control plane, as in: make test-kube KUBE_TESTS=servers
KUBE_TESTS ?=
# Where `make install` puts the C library.
PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR ?= lib
# Extra arguments for the benchmarks, as in: make bench BENCH_ARGS="--quick --only engine"
BENCH_ARGS ?=

tools = $$(scripts/ensure_dev_tools.sh)/bin
wheel_env = .venv-vllm-$(VLLM_VERSION)
nextest = $(shell command -v cargo-nextest)
# The parts of `make test`. The wheel comes first: `lint` compares its type stubs with it.
parts = wheel lint kernels test-rust test-capi test-deploy test-rdma test-peers test-python test-e2e
python_sources = python tests scripts demo examples benches

.PHONY: help build wheel kernels install capi-abi deploy-files image-rootfs test test-rust test-capi test-deploy test-rdma test-infinistore-rdma test-kube test-peers test-python test-e2e test-faults soak lint test-full test-slow test-vllm-matrix demo bench dist clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do \
	  printf '  %-18s %s\n' "$$name" "$$text"; done

build: ## all crates, in the development profile
	scripts/ensure_rust.sh
	scripts/ensure_system_packages.sh
	cargo build --locked --workspace --all-targets

wheel: ## the Python wheel, installed beside vLLM in this checkout's environment
	scripts/ensure_system_packages.sh
	wheel="$$(scripts/build_wheel.sh)" && scripts/install_wheel.sh "$$wheel"

install: ## the C library and its headers, in PREFIX (/usr/local); DESTDIR and LIBDIR as usual
	PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" LIBDIR="$(LIBDIR)" scripts/install_capi.sh

capi-abi: ## include/kvcache.abi anew, after a deliberate change of the C library's binary interface
	cargo build --locked --profile test -p kvcache-capi --lib
	python3 -m tests.capi.abi "$${CARGO_TARGET_DIR:-target}/debug/libkvcache.so"

deploy-files: ## the files of deploy/ that follow from the operator's code, anew
	cargo run --locked -q -p kvcache-operator --no-default-features --bin crdgen -- deploy

image-rootfs: ## root file systems of the images of server and operator, in dist/rootfs/
	scripts/ensure_rust.sh
	cargo build --locked --release -p kvcache-cli -p kvcache-operator --bins
	scripts/image_rootfs.sh "$${CARGO_TARGET_DIR:-target}/release/kvcache" dist/rootfs/server
	scripts/image_rootfs.sh "$${CARGO_TARGET_DIR:-target}/release/kvcache-operator" dist/rootfs/operator

test: ## everything that a change must pass
	scripts/ensure_rust.sh
	scripts/ensure_system_packages.sh
	MAKE="$(MAKE)" scripts/run_parts.sh $(parts)

kernels: ## are the committed CUDA kernels what their sources make? (104 MB of compilers the first time, skipped without)
	scripts/check_kernels.sh

test-rust: ## tests of the crates
	scripts/ensure_rust.sh
	scripts/ensure_system_packages.sh
ifneq ($(nextest),)
	cargo nextest run --locked --workspace --no-fail-fast
	cargo test --locked --doc -p kvcache-core
else
	cargo test --locked --workspace --no-fail-fast
endif

test-capi: ## the C library as installed: its interface, headers, examples by pkg-config and CMake, valgrind
	scripts/ensure_rust.sh
	scripts/ensure_system_packages.sh
	"$(tools)/python" -m pytest tests/capi -rs $(PYTEST_ARGS)

test-deploy: ## the Helm chart rendered, the manifests put together, the programs inside their images' root file systems
	scripts/ensure_rust.sh
# With the whole workspace and one test, since cargo then chooses the features that `test-rust` has: nothing is compiled twice.
	cargo build --locked --profile test --workspace --bin kvcache --bin kvcache-operator --test deploy
	KVCACHE_PROGRAMS="$${CARGO_TARGET_DIR:-target}/debug" "$(tools)/python" -m pytest tests/deploy -rs $(PYTEST_ARGS)

test-rdma: ## real RDMA verbs in a small virtual machine with soft RoCE; skipped where it cannot be had
	scripts/ensure_rust.sh
	tests/rdma/run_small_guest.sh

test-infinistore-rdma: ## the published InfiniStore over soft RoCE, its server and its client, in a larger virtual machine
	scripts/ensure_rust.sh
	tests/rdma/run_infinistore_guest.sh

test-kube: ## the operator's world for real: API server, controllers, servers as pods (compiled once, 15 minutes); skipped where it cannot be had
	scripts/ensure_rust.sh
	kvcache-operator/tests/kube/run.sh $(KUBE_TESTS)

test-peers: ## programs of others against ours; skipped where they cannot be downloaded
	"$(tools)/python" -m pytest tests/peers -rs $(PYTEST_ARGS)

test-python: $(wheel_env) ## tests of the Python package: its API and vLLM's contract, no engine
	KVCACHE_TOOL="$$(scripts/build_cli.sh)" $(wheel_env)/bin/python -m pytest $(wildcard tests/contract tests/unit) $(PYTEST_ARGS)

test-e2e: $(wheel_env) ## a real vLLM engine on the CPU
	KVCACHE_TOOL="$$(scripts/build_cli.sh)" $(wheel_env)/bin/python -m pytest tests/e2e -m "not slow" -n $(E2E_PROCESSES) --dist worksteal $(PYTEST_ARGS)

test-slow: $(wheel_env) ## the slow part of the end-to-end suite: engines in processes of their own, several ranks
	KVCACHE_TOOL="$$(scripts/build_cli.sh)" $(wheel_env)/bin/python -m pytest tests/e2e -m slow $(PYTEST_ARGS)

test-faults: $(wheel_env) ## networks, servers and Redis that fail, between real processes; the tests say what was skipped
	cargo build --locked --profile test -p kvcache-cli -p ring-load
	$(wheel_env)/bin/python -m pytest tests/faults -rs $(PYTEST_ARGS)

soak: $(wheel_env) ## full rate while servers die; SOAK_ARGS="--minutes 60 --seed 7"
	cargo build --release --locked -p kvcache-cli -p ring-load
	KVCACHE_TOOL=target/release/kvcache RING_LOAD_TOOL=target/release/ring-load $(wheel_env)/bin/python -m tests.soak $(SOAK_ARGS)

test-full: ## `test`, the slow end-to-end scenarios and the release wheel
	scripts/ensure_rust.sh
	scripts/ensure_system_packages.sh
	MAKE="$(MAKE)" scripts/run_parts.sh $(parts) test-infinistore-rdma test-kube test-faults test-slow dist

test-vllm-matrix: ## contract and end-to-end tests against every supported vLLM release
	scripts/vllm_matrix.sh

lint: ## formatting, lints, types
	scripts/ensure_rust.sh
	cargo fmt --all --check
# A workspace of its own: checking more than its formatting would download what it compares us with (benches/compare/rust/Cargo.toml).
	rustfmt --edition 2024 --check benches/compare/rust/src/main.rs
	cargo clippy --locked --workspace --all-targets -- -D warnings
	"$(tools)/ruff" check $(wildcard $(python_sources))
	"$(tools)/ruff" format --check $(wildcard $(python_sources))
	"$(tools)/mypy" $(wildcard $(python_sources))
	scripts/check_stubs.sh

demo: ## the main job in one picture: offload, kill, restart, load, same tokens
	scripts/ensure_rust.sh
	$(MAKE) --no-print-directory wheel
	$(wheel_env)/bin/python -m demo.demo

bench: ## all benchmarks and plots, into benches/results/; BENCH_ARGS=--quick for a look
	scripts/ensure_rust.sh
	$(MAKE) --no-print-directory wheel
	$(wheel_env)/bin/python -m benches.collect $(BENCH_ARGS)

dist: ## wheel and source archive for a release, in dist/
	scripts/ensure_rust.sh
	rm -rf dist/release
	# Zig's linker takes the symbols of an old C library, so that the wheel runs on systems from 2018 on.
	PATH="$(tools):$$PATH" "$(tools)/maturin" build --release --locked --zig --compatibility manylinux_2_28 --out dist/release
	"$(tools)/maturin" sdist --out dist/release
	scripts/check_release.sh

clean: ## build products of this checkout; the caches outside of it stay
	cargo clean
	rm -rf dist .venv-vllm-* .mypy_cache .ruff_cache .pytest_cache

# A part that is run by itself makes the environment; in `make test` it is there already.
$(wheel_env):
	$(MAKE) --no-print-directory wheel
