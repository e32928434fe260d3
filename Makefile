# Two commands for people: `make run` and `make test`. Nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: run test setup check bench clean

run: $(VENV)/.run-ready  ## set up, then serve the app at http://127.0.0.1:7860 (options: make run ARGS="--port 8000")
	$(BIN)/python app.py $(ARGS)

test: setup  ## set up, then pass the tests (options: make test ARGS="-k history")
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

setup: $(VENV)/.dev-ready  ## the environment that the other commands share

check: setup  ## lint, types and imports
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## the benchmarks: ratios measured in one run
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove the environment
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev-ready: requirements-dev.txt $(VENV)/.run-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
