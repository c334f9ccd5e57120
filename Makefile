# All commands of this repository; `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
# These write what the others read: one after the other, the rest two at a time.
FIRST := $(foreach n,01 02 03 05,$(wildcard notebooks/$(n)_*.ipynb))
SMOKE := LESION_PROFILE=smoke LESION_DATASET= LESION_DATA_ROOT= OMP_NUM_THREADS=1 $(BIN)/python -m pytest
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=180

.DEFAULT_GOAL := help
.PHONY: help setup run test demo lab notebooks bench badges clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## create .venv and install (done by the others when needed)

# Installed once; again only when requirements.txt changes.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing into .venv, once: a few minutes, and about 6 GB if pip takes the CUDA build of torch"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)

run: $(READY) ## execute every notebook on the embedded sample; results in outputs/
	$(BIN)/python notebooks/run.py run $(NOTEBOOKS)

test: $(READY) ## ruff, unit tests, every notebook in the smoke profile
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@rm -rf outputs/phantoms-smoke  # results of another version of the code would be refused
	$(SMOKE) tests -n 2 --dist loadfile
	$(SMOKE) $(NBVAL) $(FIRST)
	$(SMOKE) $(NBVAL) -n 2 --dist loadfile $(filter-out $(FIRST),$(NOTEBOOKS))

demo: $(READY) ## the web page, on this machine: draw a lesion, analyze an image
	$(BIN)/python -m helpers demo

lab: $(READY) ## open the notebooks in Jupyter
	$(BIN)/jupyter lab notebooks

notebooks: $(READY) ## execute the notebooks in place, for committing
	$(BIN)/python notebooks/run.py in-place $(NOTEBOOKS)

bench: $(READY) ## measure speeds, as ratios
	$(BIN)/python tests/bench.py

badges: $(READY) ## write REPO=owner/name into config, README and notebooks
	$(BIN)/python notebooks/run.py badges $(REPO)

clean: ## remove results, stores and the embedded sample; downloads and .venv stay
	rm -rf data/stores data/features data/phantoms-* .pytest_cache .ruff_cache
	find outputs -mindepth 1 -maxdepth 1 ! -name gallery ! -name results ! -name .gitignore ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
