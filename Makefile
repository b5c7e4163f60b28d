# Every target does its own set-up. A fresh machine needs Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# Dataset folder for tests and benchmarks on real data; without it they are skipped and say so.
export RECSYS_DATA ?=
export MLFLOW_DISABLE_TELEMETRY := true

# A file of tests stays in one process, and so do the fixtures that its tests share.
EVERY_CORE := -n logical --maxprocesses 8 --dist loadfile

.PHONY: demo test test-kernels test-gpu check format bench train-quality peers constraints clean setup
.DEFAULT_GOAL := demo

demo: setup  ## The whole path on a simulated shop, in under two minutes
	@$(BIN)/recsys demo $(ARGS)

test: setup  ## All tests, a process a core; those of the Triton kernels in its interpreter. ARGS: what pytest is told
	@$(BIN)/pytest $(or $(ARGS),$(EVERY_CORE))
	@[ -n "$(ARGS)" ] || TRITON_INTERPRET=1 $(BIN)/pytest $(EVERY_CORE) tests/kernels/interp

test-kernels: setup build/triton-3.6.0/.installed  ## The kernels: interpreted, and every launch compiled by two Tritons
	@TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels/interp
	@$(BIN)/pytest -m "aot or aot_full" tests/kernels/aot tests/benchmarks
	@echo "once more, by triton 3.6.0"
	@PYTHONPATH=build/triton-3.6.0 $(BIN)/pytest -m "aot or aot_full" tests/kernels/aot tests/benchmarks

# The Triton that belongs to torch 2.11, the oldest torch that is supported.
build/triton-3.6.0/.installed:
	@echo "set-up: triton 3.6.0, into build/triton-3.6.0"
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(@D) triton==3.6.0
	@touch $@

test-gpu: setup  ## The tests that need a GPU
	@$(BIN)/pytest -m gpu $(ARGS)

check: setup  ## Format, lint, types, import directions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy recsys tests benchmarks
	@$(BIN)/lint-imports

format: setup  ## Rewrite what can be mended by machine
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup  ## Every benchmark (ARGS=--peers: training beside RecTools and RecBole, too); results: benchmarks/results/
	@$(BIN)/python -m benchmarks.run $(ARGS)

train-quality: setup  ## Every configuration trained to its end; resumable, writes docs/results.md's table
	@$(BIN)/python -m benchmarks.train_quality $(ARGS)

peers: setup  ## RecBole and RecTools in environments of their own, for figures beside ours
	@$(BIN)/python -m benchmarks.peers.build $(ARGS)

constraints: setup  ## Write down the versions now installed
	@(echo "# The versions that were tested together (CPython 3.11). Written by: make constraints"; \
	  $(BIN)/uv pip freeze --python $(BIN)/python | grep -v -e '^-e' -e ' @ ' -e '^pip==' -e '^setuptools==' -e '^uv==' \
	  | sed 's/+cpu$$//') > constraints.txt

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt deploy/fbgemm-gpu-shim/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) was found; run: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian run: apt install python3-venv"; exit 1; }
	@echo "set-up: torch, then the rest, into .venv (about a minute)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt 'torch>=2.13,<2.14' uv
	@$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[all,dev]' \
	  $$($(BIN)/python -W ignore -c 'import torch; print("" if torch.version.cuda else "./deploy/fbgemm-gpu-shim")')
	@touch $@

clean:  ## Remove what the targets made
	rm -rf .venv .peers build runs .pytest_cache .mypy_cache .ruff_cache
