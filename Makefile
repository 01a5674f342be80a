# Everything runs in a virtual environment of its own; only Python (3.11 to 3.13) and make are needed.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN = $(VENV)/bin

.PHONY: demo test lint install install-test clean

demo: install
	$(BIN)/python -m benchmarks.demo $(DEMO)

test: install-test lint
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# workflows/ is a subpackage only once installed, so the types are checked on an installed copy.
	rm -rf $(VENV)/types && $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/types .
	rm -rf build
	$(BIN)/mypy $(VENV)/types/moesr_bids benchmarks

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf build $(DEMO) $(VENV)
