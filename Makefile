# `make demo` and `make test` need make and Python 3.11 or newer with venv.  Everything else is
# set up here, in .venv; tests take PostgreSQL, Redis and gcc from Debian's packages.

# The distribution's Python first: ordinary users can run it, which the tests of permissions
# need, while one that a version manager put into root's home is closed to them.
find_python = for p in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
    "$$p" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    && { echo "$$p"; break; }; done
PYTHON ?= $(shell $(find_python))

BIN := .venv/bin
STAMP := .venv/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)
PYTEST := $(BIN)/python -m pytest

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check shape unit property recorded kernel packages bench bench-long bpf docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## build memory of every kind here, map it, and check every page
	$(BIN)/memlens demo

test: packages check unit property recorded kernel ## everything that CI runs

check: $(STAMP) ## format, lint, types, layers, generated documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_layers.py
	$(BIN)/python docs/generate.py --check
	$(BIN)/python bpf/build.py --check

shape: $(STAMP) ## size of the package and how its modules hang together, beside the limits
	@$(BIN)/python scripts/shape.py

unit: $(STAMP) ## tests of single modules, examples in docstrings and in the documentation
	$(PYTEST) --doctest-modules src tests/unit tests/test_docs.py

property: $(STAMP) ## laws that hold for any input
	$(PYTEST) tests/property

recorded: $(STAMP) ## files of other kernels
	$(PYTEST) tests/recorded

kernel: $(STAMP) packages ## the kernel of this machine (as root: with swap of its own)
	$(BIN)/python -m bench.harness.build
	$(PYTEST) tests/kernel

# Python's venv module with them, where no Python here has it.
packages: # programs that the tests run
	@sh tests/install-packages $(if $(PYTHON),,python3-venv)

bench: $(STAMP) ## measure what a scan costs, in eight minutes, and write it to docs/
	@sh tests/install-packages vmtouch
	$(BIN)/python -m bench

bench-long: $(STAMP) ## the same with more turns and slower peers, however long it takes
	@sh tests/install-packages vmtouch
	$(BIN)/python -m bench --long

docs: $(STAMP) ## write the generated parts of the documentation again; its site, if mkdocs is there
	$(BIN)/python docs/generate.py
	@if $(BIN)/python -c 'import mkdocs' 2>/dev/null; then $(BIN)/mkdocs build --strict --quiet;\
	 else echo "no site: mkdocs is not installed (pip install '.[docs]')"; fi

bpf: $(STAMP) ## build the BPF programs again (needs clang-14, libbpf-dev and bpftool)
	$(BIN)/python bpf/build.py

clean: ## remove what was built
	rm -rf .venv build dist bench/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "memlens needs Python 3.11 or newer with its venv module\
	 (Debian: apt-get install python3-venv); or name one: make PYTHON=..." >&2; exit 1; }
	@# One that was cut short has no pip.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# Where Python may not write bytecode, every start would compile all of memlens again.
	$(BIN)/python -m compileall -q src
	@rm -f .venv/.installed-*
	@touch $@
