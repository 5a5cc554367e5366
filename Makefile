# Every target installs what it needs into .venv. PYTHON chooses the interpreter (3.11 or newer).
# make demo: pretrain on real photographs. make check: style, types, layers, tests without Ray.
# make test: make check and the tests that train on Ray. make test slow, or faster make all: all tests.
# make test-cluster: clusters of hosts made of Linux namespaces, as root.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --numprocesses
# Tests with Ray wait more than they compute: two at a time, each process with a Ray of its own.
RAYS := 2
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
unexport PYTHONDONTWRITEBYTECODE # with it, every process of a test would compile all modules again

.PHONY: demo check test slow all test-cluster format clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("glsd needs Python 3.11 or newer; name one with: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Install glsd with the extra demo or dev of pyproject.toml. --no-compile saves a minute: modules are compiled when imported.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Downloading what glsd needs for $*: minutes, once."
	@start=$$(date +%s); $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[$*]' \
		&& echo "download and installation: $$(( $$(date +%s) - start )) s"
	@touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/glsd demo --out runs/demo

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/lint-imports
	$(PYTEST) auto -m "not ray and not slow and not cluster" --doctest-modules --doctest-glob='*.md' tests glsd ray_jobs

test: check
	$(PYTEST) $(RAYS) -m "ray and not slow" tests

slow: $(VENV)/.installed-dev
	$(PYTEST) auto -m "slow and not ray and not cluster" tests
	$(PYTEST) $(RAYS) -m "ray and slow" tests

# The tests of `make test slow`, with no Ray started twice.
all: check
	$(PYTEST) auto -m "slow and not ray and not cluster" tests
	$(PYTEST) $(RAYS) -m ray tests

test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m cluster -rs tests/cluster

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
