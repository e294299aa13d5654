# make demo | unit | test | test-long | check | bench. Each sets up .venv when it is missing or stale.
# make simulate SEEDS=1000 | kills KILLS=800 DAEMON=200 tests with faults, at length.
# PYTHON=/path/to/python chooses the interpreter; ARGS=... is passed on: make demo ARGS=--exit

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Without it each of the many processes compiles every module again.
export PYTHONDONTWRITEBYTECODE :=
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))
PYTHON ?= $(shell for name in python3.11 python3.10 python3; do \
	"$$name" -c '$(FITS)' 2>/dev/null && { command -v "$$name"; break; }; done)

.PHONY: demo demo-kafka unit test test-long lint check bench simulate kills clean

demo: $(STAMP)
	$(BIN)/shoal demo $(ARGS)

demo-kafka: $(STAMP)
	$(BIN)/python -m tests.broker.demo $(ARGS)

CORES := $(shell nproc 2>/dev/null || echo 2)
PYTEST = $(BIN)/python -m pytest -n $(JOBS)

# Two workers more than cores: one waits for a broker most of its time, one for a browser.
test test-long: JOBS ?= $(shell echo $$(($(CORES) + 2)))
unit: JOBS ?= $(CORES)

# Types are checked by a test, like the others.
test: lint
	$(PYTEST) $(ARGS)

test-long: lint
	$(PYTEST) --long $(ARGS)

# A minute, without a broker, a browser or other processes, and without long sequences.
unit: $(STAMP)
	$(PYTEST) -m "not process and not slow" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

check: lint
	@# NumPy's types for Python 3.10 are older than those the code is written against.
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo $(BIN)/mypy; $(BIN)/mypy; else echo "Types are checked with Python 3.11 only."; fi

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench_ingest $(ARGS)
	$(BIN)/python -m benchmarks.bench_incremental $(ARGS)

# Both continue where they were stopped: one line per seed in FILE.
simulate: $(STAMP)
	$(BIN)/python -m tests.faults.simulate --seeds $(or $(SEEDS),1000) --out $(or $(FILE),simulation.jsonl)

kills: $(STAMP)
	$(BIN)/python -m tests.faults.kills --step-store $(or $(KILLS),800) --daemon $(or $(DAEMON),200) \
		--out $(or $(FILE),kills.jsonl)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

define require
	@{ $(1); } >/dev/null 2>&1 || { echo "$(2)" >&2; exit 1; }
endef

$(STAMP): pyproject.toml requirements.lock
	$(call require,test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)',Shoal needs Python 3.10 or 3.11: install one (on Debian: apt-get install python3.11 python3.11-venv python3.11-dev) or name it with make PYTHON=/path/to/python3.11.)
	$(call require,$(PYTHON) -c 'import ensurepip$(comma) venv',$(PYTHON) lacks the modules venv and ensurepip: install them (on Debian: apt-get install python3-venv).)
	$(call require,$(PYTHON) -c 'import os$(comma) sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")',$(PYTHON) lacks the C headers that hnswlib is compiled with: install them (on Debian: apt-get install python3-dev).)
	$(call require,command -v $${CXX:-c++} || command -v g++ || command -v clang++,hnswlib is compiled here and needs a C++ compiler: install one (on Debian: apt-get install g++) or name it with CXX=/path/to/compiler.)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

comma := ,
