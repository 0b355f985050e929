# Every target sets up what it needs in .venv, from a clone and a Python alone.
#   make train   install, build, train a DCGAN on handwritten digits, say where the pictures are
#   make test    install, build, run the whole test suite
#   make lint    ruff, mypy, clang-format
#   make bench   measure ops and a training step against eager PyTorch, and write README's tables
#   make compat  import and test this build under older torches (downloads them), or one: COMPAT_TORCH=2.12.0
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN := $(BIN)/python -m
OUT ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)
TRAIN_ARGS ?=
# One worker a core; each runs its tests on its share of the threads.
TEST_ARGS ?= -n auto --dist worksteal

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: train test lint bench compat format clean
.DELETE_ON_ERROR:

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit("gan_fast needs Python 3.10 or newer, this is " + sys.version) if sys.version_info < (3, 10) else 0'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first: the build needs it, and installing without isolation keeps pip from fetching a second one.
$(VENV)/built: $(VENV)/created constraints.txt $(SOURCES)
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

# mypy follows imports into torch, so the package must be there.
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
