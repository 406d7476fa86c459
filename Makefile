# SPDX-License-Identifier: GPL-3.0-or-later
# Every target does the set-up it needs, once; `make help` lists them.

CONFIG ?= conf/sipbridge.toml
ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
NATIVE := sipbridge/sip/native
NATIVE_SOURCES := $(wildcard $(NATIVE)/*.cpp $(NATIVE)/*.hpp $(NATIVE)/*.h $(NATIVE)/*.i) $(NATIVE)/build.py
# The stamp's name carries the build's option, so that changing it builds again.
NATIVE_MADE := $(MADE)/native$(if $(filter-out 0,$(SIPBRIDGE_G729)),-g729)

# A Python of 3.12 or newer that can compile extensions; Debian's own gets what it lacks installed.
define find_python
for name in python3.13 python3.14 python3.12 python3; do \
    for python in "$$(command -v $$name)" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin/$$name \
            "$$HOME"/.local/share/uv/python/*/bin/$$name; do \
        "$$python" -c 'import os, sys, sysconfig; headers = sysconfig.get_path("include") + "/Python.h"; \
(sys.base_prefix == "/usr" or os.path.exists(headers)) and sys.version_info >= (3, 12) or sys.exit(1); \
print(sys.executable)' 2>/dev/null && exit; \
    done; \
done
endef
ifndef PYTHON
PYTHON = $(shell $(find_python))
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run setup test check bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup ## set up and start the bridge (CONFIG=conf/sipbridge.toml)
	@exec $(BIN)/sipbridge serve --config $(CONFIG)

setup: $(MADE)/runtime $(NATIVE_MADE) ## set up alone: system packages, .venv, pjsua2

test: setup $(MADE)/development $(MADE)/test-packages $(MADE)/bench-packages ## set up and run all tests (ARGS='-k jitter -x')
	@$(BIN)/python -m tests.support.livekit
	@$(BIN)/python -m tests.support.agora_engine
	@$(BIN)/python -m pytest $(ARGS)

check: $(MADE)/development ## style, formatting, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict sipbridge tests bench
	$(BIN)/lint-imports

bench: setup $(MADE)/bench $(MADE)/bench-packages ## measure delay, losses, quality, CPU, memory (ARGS='room:100 --restarts 5')
	@$(BIN)/python -m bench $(ARGS)

clean: ## remove .venv and everything built here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "The compiled pjproject stays in your cache. To remove it too: rm -rf $${XDG_CACHE_HOME:-~/.cache}/sipbridge"

$(MADE)/venv:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	    echo "sipbridge needs Python 3.12 or newer with its headers. Run one of these, then the same command again:"; \
	    echo "  sudo apt-get install python3-venv python3-dev    # Debian 13 and newer"; \
	    echo "  pyenv install 3.13"; \
	    echo "  uv python install 3.13"; \
	    echo "or name one: make PYTHON=/path/to/python3.13 ..."; \
	    exit 1; \
	fi >&2; \
	"$$python" $(NATIVE)/build.py --packages build || exit 1; \
	if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
	    echo "[2/6] making a virtual environment in $(VENV) with $$python ..."; \
	    "$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	@mkdir -p $(MADE) && touch $@

$(MADE)/runtime: pyproject.toml constraints.txt | $(MADE)/venv
	@echo "[2/6] installing Python packages ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable .
	@touch $@

# pesq is compiled as it is installed, with Cython and numpy, which have to be there before.
$(MADE)/bench: $(MADE)/runtime
	@echo "installing Python packages for measurements ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt Cython
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	@touch $@

$(MADE)/development: $(MADE)/bench
	@echo "installing Python packages for tests and checks ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps pipecat-ai
	@touch $@

$(MADE)/test-packages: $(NATIVE)/build.py | $(MADE)/venv
	@$(BIN)/python $(NATIVE)/build.py --packages test
	@touch $@

$(MADE)/bench-packages: bench/packages.py $(MADE)/runtime
	@$(BIN)/python -m bench.packages
	@touch $@

$(NATIVE_MADE): $(NATIVE_SOURCES) | $(MADE)/venv
	@$(BIN)/python $(NATIVE)/build.py --venv $(VENV)
	@rm -f $(MADE)/native* && touch $@
