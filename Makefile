# Everything anyone needs to type. `make help` lists it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help setup run test demo lab notebooks bench badges clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## create .venv and install (done by the others when needed)

# Installed once; again only when requirements.txt changes.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name it: make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing into .venv, once: a few minutes and about 6 GB where pip takes the CUDA build of torch"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)

run: $(READY) ## execute every notebook on the embedded sample; results in outputs/
	$(BIN)/python tests/notebooks.py run $(NOTEBOOKS)

test: $(READY) ## ruff, unit tests, every notebook in the smoke profile
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@rm -rf outputs/phantoms-smoke  # experiments of other code would be refused, not repeated
	LESION_PROFILE=smoke LESION_DATASET= LESION_DATA_ROOT= $(BIN)/python -m pytest tests notebooks \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=180

demo: $(READY) ## the web page, on this machine: draw a lesion, analyse a photograph
	$(BIN)/python -m helpers demo

lab: $(READY) ## open the notebooks in Jupyter
	$(BIN)/jupyter lab notebooks

notebooks: $(READY) ## execute the notebooks in place, for committing
	$(BIN)/python tests/notebooks.py in-place $(NOTEBOOKS)

bench: $(READY) ## measure the speeds that the README states
	$(BIN)/python tests/bench.py

badges: $(READY) ## write REPO=owner/name into config, README and notebooks
	$(BIN)/python tests/badges.py $(REPO)

clean: ## remove results, stores and the embedded sample; downloads and .venv stay
	rm -rf data/stores data/features data/phantoms-* .pytest_cache .ruff_cache
	find outputs -mindepth 1 -maxdepth 1 ! -name gallery ! -name .gitignore ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
