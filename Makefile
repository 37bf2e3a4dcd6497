# The course on a fresh machine: `make lab` to read it, `make test` to check it. A bare `make` lists everything.
.DEFAULT_GOAL := help
PYTHON ?= python3
PORT ?= 8888
BROWSER ?= yes
TESTS ?= notebooks tests
BENCH ?=
CPU ?= no
VENV := .venv
BIN := $(VENV)/bin
BOOK := .venv-book

# the kernels of this environment come first, whatever else Jupyter finds on the machine; the course's settings count
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_CONFIG_PATH := $(CURDIR)/.jupyter

# without an NVIDIA GPU, PyTorch's build for CPUs saves several GB
ifeq ($(CPU),yes)
export PIP_EXTRA_INDEX_URL := https://download.pytorch.org/whl/cpu
endif

.PHONY: help setup lab test progress update figures bench book test-book clean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.complete  ## make .venv with everything in requirements.txt (CPU=yes: no CUDA libraries, some GB less)

lab: setup  ## open the course in JupyterLab (PORT=8888, BROWSER=no for a machine without a screen)
	$(BIN)/python -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --port $(PORT) \
		$(if $(filter no,$(BROWSER)),--no-browser) $(if $(filter 0,$(shell id -u)),--allow-root) \
		notebooks/00_start_here.ipynb

# one thread a process: the tests run side by side already, and threads that wait for each other would starve them
test: setup  ## run every notebook and every test (TESTS=notebooks/09_flash_attention_triton.ipynb for one)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -c tests/pytest.ini --rootdir . $(TESTS)

progress: setup  ## list the exercises: done, failing, not attempted, minutes left
	@$(BIN)/python -m helpers.desk.progress

update:  ## bring a newer version of the lessons, and keep your answers, changed cells and added cells
	@$(PYTHON) -m helpers.desk.update

figures: setup  ## draw figures/*.svg again, and write the README's measurements
	$(BIN)/python figures/draw.py

bench: setup  ## measure on this machine's NVIDIA GPU, into figures/<device>/ (BENCH="vector_add" for one suite)
	$(BIN)/python -m helpers.bench $(BENCH)

book: $(BOOK)/.complete  ## build the course as a static site, build/book/index.html, from the saved outputs
	$(BOOK)/bin/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going -c book . build/book

test-book: book  ## test that site in a browser, Chromium or Chrome
	$(BOOK)/bin/python -m pytest -c book/pytest.ini --rootdir book book

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) $(BOOK) build CUDA/build .pytest_cache .hypothesis
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(VENV)/.complete: requirements.txt
	@$(PYTHON) helpers/desk/preflight.py
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(BOOK)/.complete: requirements-book.txt
	rm -rf $(BOOK)
	$(PYTHON) -m venv $(BOOK)
	$(BOOK)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-book.txt
	touch $@
