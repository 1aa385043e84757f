# One door to everything: `make help`. Needs Python 3.11 or newer, and nothing else: each target makes the
# environment that it needs in .venv, whether or not another one is active.

PYTHON ?= python3
PY := .venv/bin/python

# Where there is no NVIDIA driver, Linux takes the much smaller CPU build of torch, if it can be had.
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_TORCH := $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && echo yes)

# A strict editable install does not see new files, so the stamp's name is a checksum of their list,
# of what pip reads, and of where the project lies: whichever changes, the package is installed again.
SOURCES := find plugin backends strategies -name '.*' -prune -o -name __pycache__ -prune -o -type f -print
SUM := $(shell { pwd; $(SOURCES) | LC_ALL=C sort; cat pyproject.toml constraints.txt; } | cksum | cut -d' ' -f1)
STAMP := .venv/.installed-$(SUM)
ifeq ($(wildcard build/__editable__.*),)  # the links that the install consists of
.PHONY: $(STAMP)
endif

# Spinning OpenMP threads on a busy machine cost more than they bring to models this small.
ONE_THREAD := OMP_NUM_THREADS=1

LLAMA := $(shell grep -E '^(llama-cpp-python|gguf)==' constraints.txt)

# Nothing from outside leaks into .venv.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help demo test lint type bench nano-report llama

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(STAMP)  ## answer questions with the bundled models, under a budget
	@$(ONE_THREAD) $(PY) examples/demo.py

test: $(STAMP) llama  ## run the tests; ARGS="-k budget" narrows them
	@$(ONE_THREAD) $(PY) -m pytest $(ARGS)

lint: $(STAMP)  ## ruff check, ruff format, codespell
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m codespell_lib

type: $(STAMP)  ## mypy, strict
	@$(PY) -m mypy

bench: $(STAMP) llama  ## run every script of examples/bench, in order
	@for script in examples/bench/[!_]*.py; do echo "== $$script"; $(ONE_THREAD) $(PY) $$script || exit 1; done

nano-report: $(STAMP)  ## measure the trained models: examples/nano/report
	@$(PY) -m pip install -qq -c constraints.txt matplotlib
	@cd examples && $(ONE_THREAD) ../$(PY) -m nano.report sample && $(ONE_THREAD) ../$(PY) -m nano.report

# llama.cpp is compiled, which takes some minutes the first time; pip keeps what it built. Without a C++ compiler the
# rest works, and its tests are skipped.
llama: $(STAMP)
	@$(PY) -c 'import gguf, llama_cpp' 2>/dev/null || { \
		echo 'Building llama.cpp (some minutes the first time)'; \
		$(PY) -m pip install -qq -c constraints.txt $(LLAMA) || echo 'llama.cpp could not be built: its tests are skipped'; }

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Installing into .venv (a minute or two the first time)'
	@$(PYTHON) -m venv .venv
ifeq ($(CPU_TORCH),yes)
	@$(PY) -m pip install -qq --no-deps --no-index '$(TORCH)' 2>/dev/null \
		|| $(PY) -m pip install -qq --no-deps --retries 1 --index-url $(TORCH_INDEX) '$(TORCH)' 2>/dev/null || true
endif
	@$(PY) -m pip install -qq -c constraints.txt -e '.[dev]' --config-settings editable_mode=strict
	@rm -f .venv/.installed-*
	@touch $@
