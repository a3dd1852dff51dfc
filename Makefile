# make demo       install into .venv, then the whole story on embedded data: ≤ 8 minutes on 2 CPU cores
# make test       install into .venv what the tests need, then run all of them
# make test-fast  those that take less than about five seconds each; TESTS=tests/docs: some of them
# make lint       ruff and mypy
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two workers more than cores, since some tests wait; four at most, since a test may start four ranks of its own.
WORKERS := --numprocesses $(shell echo $$(($$(nproc 2>/dev/null || echo 2) + 2))) --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder
EXTRAS := deepspeed,audio,video,fast,parquet,fp8,schedulefree,dev

# What is compiled once is kept: without, every process would compile torch and transformers anew, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast lint install install-dev clean

demo: install
	$(BIN)/python -m launch local demo $(DEMO)

test: install-dev
	$(BIN)/python -m pytest $(WORKERS) $(TESTS)

test-fast: install-dev
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) $(TESTS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11, or say: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.11 is needed: make PYTHON=python3.11 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once) …"
	$(PIP) install --no-compile --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@command -v c++ >/dev/null || { echo "error: no C++ compiler (c++); the DeepSpeed tests build an extension; on Debian: apt-get install g++"; exit 1; }
	@echo "Installing into $(VENV) what the tests need (once) …"
	$(PIP) install --no-compile --constraint constraints.txt torch setuptools wheel ninja
	$(PIP) install --no-compile --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs
