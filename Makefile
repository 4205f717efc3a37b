# Every target sets itself up in .venv and needs nothing but Python, pip, make and bash. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# pytest-xdist runs two processes: `make check WORKERS=4` uses four, WORKERS=0 only this one.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_FLAGS)
NO_SOCKETS = --disable-socket --allow-unix-socket
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --custom-compile-command "make lock" pyproject.toml

.PHONY: help demo up chaos check test lint types layers quick full soak coverage messages docs format lock clean

help:                      ## list the targets
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@echo "Python 3.11 to 3.14 is needed: make TARGET PYTHON=python3.13 names another one than python3."

demo: $(VENV)/local.done   ## start the local cloud, run a job of each kind through it, and show them
	$(BIN)/python -m local demo

up: $(VENV)/local.done     ## start the local cloud and keep it running, to launch jobs on it yourself
	$(BIN)/python -m local up

chaos: SECONDS ?= 120
chaos: SEED ?= 0
chaos: $(VENV)/local.done  ## kill functions and disturb services for SECONDS=120, then account for every item
	$(BIN)/python -m local chaos --seconds $(SECONDS) --seed $(SEED)

check: lint types layers quick  ## the developer's loop: linters, types, layers and the tests without sockets, in a minute

test: lint types layers full    ## everything, with all mutations, 2,000 simulated worlds and 100,000 junk events

lint: $(VENV)/tests.done   ## check format and style
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

types: $(VENV)/tests.done  ## check the types
	$(BIN)/mypy

layers: $(VENV)/tests.done ## check which modules import which
	$(BIN)/lint-imports

quick: $(VENV)/tests.done  ## run the unit and functional tests and 100 simulated worlds (SEEDS=..., JUNK=...)
	$(PYTEST) $(NO_SOCKETS) --quiet tests/unit tests/functional tests/simulation -k "not mutation_is_found"

full: WORKERS = 3          # many tests wait for a process: three keep two cores busy
full: $(VENV)/tests.done   ## run all tests with their full numbers
	FULL=1 $(PYTEST)

soak: SEEDS ?= 50000
soak: FIRST ?= 0
soak: $(VENV)/tests.done   ## live SEEDS=50000 simulated worlds from FIRST=0 on, and print what they covered
	$(BIN)/python -m tests.simulation.soak $(SEEDS) --first $(FIRST) --workers $(WORKERS)

coverage: $(VENV)/tests.done    ## measure which lines and branches of the package the tests reach
	$(PYTEST) --quiet --cov --cov-report=term:skip-covered --cov-report=html -k "not mutation_is_found" \
	  tests/unit tests/functional tests/simulation tests/loopback

docs: $(VENV)/tests.done   ## write docs/configuration.md from the descriptions of the settings
	$(BIN)/python -m tests.support.reference

messages: $(VENV)/tests.done    ## write every sentence that the product can print to tests/snapshots/messages.txt
	$(BIN)/python -m tests.support.messages

format: $(VENV)/tests.done ## format the code and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/tests.done   ## compile the exact versions from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(LOCK) --output-file requirements.txt
	$(LOCK) --constraint requirements.txt --extra local --extra preflight --output-file local/requirements.txt
	$(LOCK) --constraint local/requirements.txt --extra local --extra preflight --extra test --output-file tests/requirements.txt

# Call with a Python: stop unless it is one of the supported versions.
supported = @$(1) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || { \
  echo "$(1) is $$($(1) --version 2>&1 || true); vertex-launch needs Python 3.11, 3.12, 3.13 or 3.14." >&2; \
  echo "Name one and remove $(VENV), if it exists: make $(or $(firstword $(MAKECMDGOALS)),demo) PYTHON=python3.13" >&2; exit 1; }

# Call with a file of requirements: install it, and show how far that is on a terminal.
define install
	@total=$$(grep -c '==' $(1)); count=0; \
	echo "Installing $$total packages from $(1) into $(VENV); this is done once and takes up to a minute."; \
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --requirement $(1) | while read -r word name; do \
	  case "$$word" in \
	    Collecting) count=$$((count + 1)); line="$$count of $$total: $$name" ;; \
	    Installing) line="writing the files" ;; \
	    *) continue ;; \
	  esac; \
	  if [ -t 1 ]; then printf '\r\033[K  %.70s' "$$line"; fi; \
	done; \
	if [ -t 1 ]; then printf '\r\033[K'; fi
endef

$(BIN)/pip:
	$(call supported,$(PYTHON))
	@$(PYTHON) -m venv $(VENV)
	@# Older versions of pip refuse hashes for packages that others require with extras.
	@$(BIN)/pip --version | grep -Eq '^pip (24\.[2-9]|2[5-9]|[3-9][0-9])' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/local.done: local/requirements.txt | $(BIN)/pip
	$(call supported,$(BIN)/python)
	$(call install,local/requirements.txt)
	@touch $@

$(VENV)/tests.done: tests/requirements.txt | $(BIN)/pip
	$(call supported,$(BIN)/python)
	$(call install,tests/requirements.txt)
	@touch $@ $(VENV)/local.done

clean:                     ## remove what the targets have made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .local .coverage htmlcov
