# Everything on a fresh machine that has Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint format docs ui pictures lock clean

demo: $(INSTALLED) ## the whole pipeline on embedded prices
	@$(BIN)/finjepa demo

test: $(INSTALLED) ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-all: $(INSTALLED) ## the slow tests as well, and all examples of Hypothesis
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow or not slow" --hypothesis-profile=full

lint: $(INSTALLED) ## style, types, layers and dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/deptry finjepa_model finjepa_pipeline

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## the documentation as a site in site/, with the generated reference
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html, or run: $(BIN)/python -m http.server --directory site"

ui: $(INSTALLED) ## the Dagster UI on the data of .finjepa
	@case "$${FINJEPA_HOME:-$(CURDIR)}" in *[][*]*) echo "make ui: Dagster does not find its dagster.yaml in a folder with [, ] or * in its path; move FINJEPA_HOME" >&2; exit 1;; esac
	@$(BIN)/finjepa doctor >/dev/null
	DAGSTER_HOME=$${FINJEPA_HOME:-$(CURDIR)/.finjepa}/dagster PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m finjepa_pipeline.ui

pictures: $(INSTALLED) ## the pictures of the documentation, of the home that a demo has filled; needs chromium
	home=$${FINJEPA_HOME:-.finjepa}; env -u FINJEPA_HOME $(BIN)/python -m docs.pictures.make $$home

lock: ## renew constraints.txt: the exact versions that demo and test install
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet -e '.[dev,docs,postgres,ray,s3]' nanio
	$(VENV)-lock/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt
	rm -rf $(VENV)-lock

clean: ## removes the environment, not the data
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
