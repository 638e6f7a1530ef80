# make demo: from a fresh clone to an imagined episode beside the true one. make test: the tests. Both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# OpenMP threads that spin while another process holds a core slow torch down up to 70 times.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test fuzz lint types nested docs format wheel clean

help:
	@echo "make demo    install, then roll out an imagined episode beside the real one"
	@echo "make test    install with the development tools, then run the tests"
	@echo "make fuzz    the fuzz targets for longer (NEURALSIM_FUZZ=1000 inputs each)"
	@echo "make lint    ruff: rules and formatting"
	@echo "make types   mypy over the whole package"
	@echo "make docs    the documentation into site/, with --strict"
	@echo "make format  let ruff fix what it can"
	@echo "make wheel   build the wheel into dist/"
	@echo "make clean   remove what these targets made"

demo: $(VENV)/.installed
	$(BIN)/neuralsim demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

fuzz: $(VENV)/.installed-dev
	NEURALSIM_FUZZ=$${NEURALSIM_FUZZ:-1000} $(BIN)/python -m pytest -n auto -k fuzz $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The package's folders lie side by side here and nest when installed; tools that read sources want to see the nesting.
nested:
	rm -rf .typing && mkdir -p .typing/neuralsim
	for entry in neuralsim/*; do ln -s "../../$$entry" .typing/neuralsim/; done
	ln -s ../../envs ../../agents ../../assets .typing/neuralsim/

docs: $(VENV)/.installed-docs nested
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

types: $(VENV)/.installed-dev nested
	cd .typing && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml --explicit-package-bases -p neuralsim

wheel: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) .typing build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[docs]"
	@touch $@
