# Two commands are the front door: `make demo` and `make test`. Everything goes into .venv here; nothing else is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The CPU build that is tested. On a machine with a GPU: make demo TORCH='torch>=2.11'
TORCH  ?= torch==2.13.0
# In which the tests of the GPU's kernels run on a CPU. A CUDA build of torch brings the version that it needs.
TRITON ?= triton==3.6.0 ; platform_system == 'Linux' and platform_machine == 'x86_64'
# Tests run in so many processes, a file in one of them.
JOBS   ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-thorough test-gpu check lint docs protos released install dev clean
.DEFAULT_GOAL := demo

demo: install  ## starts a server with the bundled model, streams one answer, stops
	@$(BIN)/semipd demo

test: dev  ## the tests that need no GPU
	@$(PYTEST)

test-all: test test-thorough  ## every test that needs no GPU

test-thorough: dev  ## more cases of what the quicker tests promise, too
	@$(PYTEST) -m 'thorough and not gpu'

test-gpu: dev  ## the tests of the GPU back end; needs a GPU, a CUDA build of torch and the extra `cuda` (docs/gpu.md)
	@PYTHON=$(BIN)/python bash scripts/test_gpu.sh

check: dev lint docs  ## what CI checks besides the tests

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file clients/python/pyproject.toml clients/python/semipd_client clients/python/tests
	$(BIN)/lint-imports
	$(BIN)/python scripts/docstrings.py
	$(BIN)/python scripts/conventions.py
	$(BIN)/python scripts/protos.py --check
	$(BIN)/python scripts/api_page.py --check
	bash scripts/buf.sh lint
	bash scripts/buf.sh breaking --against proto/released.binpb

docs: dev  ## builds the docs site into build/site; a dead link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

protos: dev  ## regenerates the committed stubs and the reference in docs/api.md
	$(BIN)/python scripts/protos.py
	$(BIN)/python scripts/api_page.py

released:  ## the API as it is now becomes what later changes must not break
	bash scripts/buf.sh build proto --exclude-source-info -o proto/released.binpb

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "semipd needs Python 3.11 or newer; name one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { bash scripts/need.sh python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	@touch $@

$(VENV)/.installed: $(VENV)/.venv pyproject.toml clients/python/pyproject.toml constraints.txt
	@echo "installing semipd into $(VENV) (some minutes the first time)"
	@$(PIP) '$(TORCH)'
	@$(PIP) -c constraints.txt -e clients/python -e '.[bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) "$(TRITON)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .ci/cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
