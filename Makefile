# Two commands do everything on a machine that has only Python 3.11 to 3.13: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo up chaos test soak lint types imports pytest format lock clean

demo: $(VENV)/local.done   ## start a cloud on this machine, run twenty-three items through it, and show them
	$(BIN)/python -m local demo

up: $(VENV)/local.done     ## start a cloud on this machine and keep it
	$(BIN)/python -m local up

chaos: SECONDS ?= 120
chaos: SEED ?= 0
chaos: $(VENV)/local.done  ## kill the functions and trouble the services for so long, then account for every item
	$(BIN)/python -m local chaos --seconds $(SECONDS) --seed $(SEED)

test: lint types imports pytest

soak: SEEDS ?= 50000
soak: $(VENV)/tests.done   ## live so many simulated worlds, as make soak SEEDS=100000
	SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulation -k seeds

lint: $(VENV)/tests.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/tests.done
	$(BIN)/mypy

imports: $(VENV)/tests.done
	$(BIN)/lint-imports

pytest: $(VENV)/tests.done
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

format: $(VENV)/tests.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/tests.done   ## compile the exact versions from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --constraint requirements.txt --extra local pyproject.toml --output-file local/requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --constraint local/requirements.txt --extra local --extra test pyproject.toml --output-file tests/requirements.txt

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/local.done: local/requirements.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement local/requirements.txt
	touch $@

$(VENV)/tests.done: tests/requirements.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@ $(VENV)/local.done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .local
