# make demo: from a fresh clone to an imagined episode beside the true one. make test: the tests. Both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# OpenMP threads that spin while another process holds a core slow torch down up to 70 times.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test lint types format wheel clean

help:
	@echo "make demo    install, then dream an episode beside the true one"
	@echo "make test    install with the development tools, then run the tests"
	@echo "make lint    ruff: rules and formatting"
	@echo "make types   mypy over the whole package"
	@echo "make format  let ruff mend what it can"
	@echo "make wheel   build the wheel into dist/"
	@echo "make clean   remove what these targets made"

demo: $(VENV)/.installed
	$(BIN)/neuralsim demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The package's folders lie side by side here and nest when installed; type checkers want to see the nesting.
types: $(VENV)/.installed-dev
	rm -rf .typing && mkdir -p .typing/neuralsim
	for entry in neuralsim/*; do ln -s "../../$$entry" .typing/neuralsim/; done
	ln -s ../../envs ../../agents ../../assets .typing/neuralsim/
	cd .typing && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml --explicit-package-bases -p neuralsim

wheel: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "NeuralSim needs Python 3.11 or newer, $$($(PYTHON) -V) came; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps, newer than pyproject.toml once it is installed: a second run installs nothing.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing NeuralSim into $(VENV) (once; a minute or two)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing NeuralSim and its development tools into $(VENV) (once; a minute or two)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[dev]"
	@# openpi's client pins numpy 1; it runs with ours, and the tests drive the policy server with it as PyPI ships it.
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps openpi-client==0.1.2
	@touch $(VENV)/.installed $@
