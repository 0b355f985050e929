# Every target creates the virtual environment .venv and installs what it needs; all that is required is Python.
#   make train   build, train a DCGAN on scanned digits, print where the pictures are
#   make test    build, run the whole test suite
#   make lint    run ruff, mypy and clang-format
#   make format  fix what they can fix
#   make bench   measure against eager, tuned and compiled PyTorch; write README's table and docs/benchmarks.md
#   make compat  test the build under PyTorch 2.11 and 2.12 (downloads them), or under one: COMPAT_TORCH=2.12.0
#   make clean   remove .venv and the build
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN := $(BIN)/python -m
OUT ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)
TRAIN_ARGS ?=
# One worker per core; conftest.py gives each its share of the threads.
TEST_ARGS ?= -n auto --dist worksteal

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: train test lint bench compat format clean
.DELETE_ON_ERROR:

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit("gan_fast needs Python 3.10 or newer, this is " + sys.version) if sys.version_info < (3, 10) else 0'
	$(PYTHON) -m venv $(VENV)
	touch $@

# The build needs torch, and building without isolation keeps pip from downloading a second one.
$(VENV)/built: $(VENV)/created constraints.txt $(SOURCES)
	@echo 'Installing PyTorch and compiling gan_fast; this takes a few minutes.'
	$(PIP) torch setuptools wheel ninja pybind11
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e '.[digits]'
	touch $@

$(VENV)/tested: $(VENV)/built
	$(PIP) --no-build-isolation -e '.[test]'
	touch $@

$(VENV)/linted: $(VENV)/created constraints.txt
	$(PIP) ruff mypy clang-format
	touch $@

train: $(VENV)/built
	$(RUN) gan_fast train --data digits --out $(OUT) $(TRAIN_ARGS)

test: $(VENV)/tested
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) pytest $(TEST_ARGS)

# mypy follows imports into torch, so the package must be installed.
lint: $(VENV)/linted $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/linted
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/tested
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) pytest benchmarks --benchmark-json=BENCH.json $(BENCH_ARGS)
	$(RUN) benchmarks.report BENCH.json
	$(RUN) benchmarks.table

compat: $(VENV)/tested
	sh tests/compat.sh $(BIN)/python $(COMPAT_TORCH)

clean:
	rm -rf $(VENV) build gan_fast/_C*.so *.egg-info
