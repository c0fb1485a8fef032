# One target, one script in ci/. `make help` lists them.
SHELL := /bin/sh
MAIN := .venv/ready
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help venv newest all-venvs build debug trace asan lint test test-all demo bench fuzz soak array-soak interop-full clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(MAIN)  ## .venv, from the first Python of 3.11, 3.12, 3.13 that runs
$(MAIN): pyproject.toml ci/venv
	@set -e; found="$$(ci/find_python)"; ci/venv .venv "$$(echo "$$found" | head -n 1 | cut -d' ' -f2-)" test,lint

# .venv-3.13 and so on, of each further interpreter; `newest` is the one that differs most from .venv's.
FURTHER = cat
newest: FURTHER = tail -n 1
newest all-venvs: $(MAIN)
	@set -e; main="$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; \
	ci/find_python | $(FURTHER) | while read -r version path; do \
		folder=".venv-$$version"; \
		if [ "$$version" = "$$main" ] || [ "$$folder/ready" -nt pyproject.toml ]; then continue; fi; \
		echo "== $$folder"; ci/venv "$$folder" "$$path" test; \
	done

build: $(MAIN)  ## compile what changed, in place
	@ci/build release
debug: $(MAIN)  ## the same with assertions and counters
	@ci/build debug
trace: $(MAIN)  ## the same with line tracing
	@ci/build trace
asan: $(MAIN)  ## the same under address and undefined behaviour sanitizers
	@ci/build asan

lint: build  ## ruff, mypy --strict, pyright, stubtest
	@ci/lint
test: newest build  ## everything but the long tests, on the oldest and the newest Python; at most 15 minutes on 2 cores
	@ci/test
test-all: test all-venvs  ## and the long tests, every Python, debug, coverage, sanitizers, lowest dependencies; at most 80 minutes
	@ci/test-all

demo: build  ## real data through a plugin over every transport
	@ci/demo
bench: build  ## measure against the C floor, sockets, pipes, pyzmq, grpcio; wants an idle machine
	@ci/bench
fuzz: build  ## a target per parser, from new seeds; FUZZ_S, FUZZ_EXAMPLES
	@ci/fuzz
soak: build  ## ten million calls, memory and descriptors watched
	@ci/soak
array-soak: build  ## a million arrays from eight threads while plugins are killed
	@ci/array-soak
interop-full: build  ## both directions against real Go peers, long tests too
	@ci/interop-full

clean:  ## remove what builds and tests made, but no virtual environment
	rm -rf build .ruff_cache .pytest_cache .hypothesis
	find src \( -name '*.so' -o -name '*.c' \) -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
