# Start with `make demo` (ARGS=--fresh starts over) and `make test`. Both create .venv from requirements.lock if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process of tests a core, at most four; the files of tests are shared out among them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses 4 --dist loadfile
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint types install clean lock

demo: install
	$(BIN)/fnet-t5 demo $(ARGS)

test: lint types
	$(PYTEST)

test-all: lint types
	$(PYTEST) -m ""

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: install
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info < (3, 13); sys.exit(0 if ok else "Python 3.10, 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + ": give another by make PYTHON=python3.11")'
	@echo "Installing into $(VENV): about 2.5 GB, some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $(INSTALLED)

# Needs uv. torch is pinned by hand, because the lock is for machines without a GPU and must not contain its CUDA packages.
lock:
	@command -v uv > /dev/null || { echo "make lock needs uv, which is not on the PATH: pip install uv"; exit 1; }
	printf 'torch==2.13.0\nmlflow==3.17.2\n' > $(VENV)/pins
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --constraint $(VENV)/pins --quiet \
	   --no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file $(VENV)/resolved
	(echo "# Exact versions that continuous integration runs, for Python 3.10 to 3.12 on Linux. Made by \`make lock\`."; \
	 grep -vE '^(nvidia-|cuda-|triton|torch==)' $(VENV)/resolved; echo "torch==2.13.0") > requirements.lock

clean:
	rm -rf $(VENV) runs build *.egg-info
