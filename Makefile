# Everything runs in a virtual environment of its own; only Python (3.11 to 3.13) and make are needed.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN = $(VENV)/bin

# The image: VARIANT=cuda takes PyTorch with CUDA. BUILDER may be "docker build" or "podman build"; IMAGE_OPTIONS go to it.
VARIANT ?= cpu
BASE ?= debian:bookworm-slim
TORCH_INDEX ?=
BUILDER ?= buildah build --isolation=chroot --layers --timestamp $(EPOCH)
IMAGE_OPTIONS ?=
EPOCH := $(shell git log -1 --format=%ct)
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' moesr_bids/__init__.py)
IMAGE ?= moesr-bids:$(VERSION)-$(VARIANT)
# What the image is tested on: a BIDS data set, one of its participants, and options that make it quick.
IMAGE_DATA ?= ../shared/data/bids
IMAGE_LABEL ?= native2mm
IMAGE_RUN ?= --resolution 2 --model cubic --sloppy

.PHONY: demo test lint docs dist install install-test clean image test-image test-slurm test-tools

demo: install
	$(BIN)/python -m benchmarks.demo $(DEMO)

test: install-test lint
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 40 --durations-min 5

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# workflows/ is a subpackage only once installed, so the types are checked on an installed copy.
	rm -rf $(VENV)/types && $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/types .
	rm -rf build
	$(BIN)/mypy $(VENV)/types/moesr_bids benchmarks

# The site of the documentation, in build/site. MkDocs would advertise its successor otherwise.
docs: install-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The wheel, in dist. A build folder of before would add files that are no more.
dist: install-test
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

image:
	$(BUILDER) --build-arg BASE=$(BASE) --build-arg VARIANT=$(VARIANT) --build-arg TORCH_INDEX=$(TORCH_INDEX) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
	  --build-arg CREATED=$(shell git log -1 --format=%cI) --build-arg SOURCE_DATE_EPOCH=$(EPOCH) \
	  --tag $(IMAGE) $(IMAGE_OPTIONS) .

test-image:
	containers/test_image.sh $(IMAGE) $(IMAGE_DATA) $(IMAGE_LABEL) $(IMAGE_RUN)

test-slurm: install-test
	MOESR_TEST_SLURM=1 $(BIN)/python -m pytest -s tests/test_slurm_array.py

# What containers/ holds for Boutiques, nipoppy and BABS, with these tools in an environment of their own; git-annex is needed.
test-tools: install-test $(VENV)/tools/bin/babs
	MOESR_TOOLS=$(abspath $(VENV)/tools) $(BIN)/python -m pytest tests/test_container_files.py

$(VENV)/tools/bin/babs:
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/pip install --quiet boutiques==0.5.33 nipoppy==0.4.8 babs==0.5.4

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
	rm -rf build dist $(DEMO) $(VENV)
