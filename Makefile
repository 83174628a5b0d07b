# `make help` lists the targets. Everything is installed into .venv, each part once.

VENV    ?= .venv
# PyTorch is needed by the tests only; on Linux the default index may answer with a build of several GB for CUDA.
TORCH   ?= torch==2.13.0
ARGS    ?=
# test processes
JOBS    ?= logical

# A version manager's shim can be on PATH and still refuse to run, so a candidate counts only if it really runs.
FOUND    = $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
# looked for once, and only where it is needed
PYTHON  ?= $(eval PYTHON := $(FOUND))$(PYTHON)

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check --quiet
# each process takes tests in their order, so that what a file's tests share is made once, and in the end what others have left
SPREAD  := -n $(JOBS) --dist worksteal
# images of containers often forbid bytecode: every run would compile all tests anew, and every process that they start, onnxcam
export PYTHONDONTWRITEBYTECODE :=
say      = printf '\033[36m%s\033[0m\n'

.DEFAULT_GOAL := help
.PHONY: help demo test soak fleets check fast lint docs pages matrix runtimes bench clean
.DELETE_ON_ERROR:

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "\033[36m%-8s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Explain the bundled pictures with the bundled model.
	@$(VENV)/bin/onnxcam demo $(ARGS)

test: $(VENV)/.test ## Run every test but the soaks and the fleets (ARGS='-k gradcam' for some).
	@$(PY) -m pytest $(SPREAD) $(ARGS)

soak: $(VENV)/.test ## Run at full length what `make test` runs a sample of.
	@$(PY) -m pytest -m soak $(SPREAD) $(ARGS)

fleets: $(VENV)/.test ## Run explanations by Ray, Daft and Spark in environments of their own, retrainings and long runs.
	@$(PY) -m pytest -m fleets $(ARGS)

check: $(VENV)/.test ## Check format, lint, types and layers, and run the fast tests.
	@$(MAKE) --no-print-directory --jobs 2 lint fast

fast: $(VENV)/.test
	@MAKEFLAGS= $(PY) -m pytest -q -m 'not slow' --ignore tests/test_layers.py $(SPREAD) $(ARGS)

# The type checker looks for onnxcam.exporters inside onnxcam, so it is shown the tree as it is installed.
lint: $(VENV)/.test ## Check format, lint, types and layers only.
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@rm -rf build/typed && mkdir -p build/typed/onnxcam/models
	@ln -sfn $(CURDIR)/onnxcam/* $(CURDIR)/exporters build/typed/onnxcam/ && ln -sf $(CURDIR)/models/__init__.py build/typed/onnxcam/models/
	@cd build/typed && $(abspath $(PY)) -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache
	@$(PY) -m pytest -q tests/test_layers.py

docs: $(VENV)/.test ## Build the documentation as a site in build/site; a broken link or reference fails.
	@$(PY) -m sphinx --quiet --nitpicky --fail-on-warning --keep-going -c docs . build/site
	@$(say) "The documentation is at build/site/index.html"

pages: $(VENV)/.test ## Write the generated pages of the documentation anew.
	@$(PY) -m tools.pages

matrix: $(VENV)/.test ## Measure parity with the frameworks' own autograd over many architectures.
	@$(PY) benchmarks/matrix.py $(ARGS)

runtimes: $(VENV)/.test ## Measure what explainable files compute in OpenVINO, tract and onnxruntime for Node and the web.
	@$(PY) benchmarks/runtimes.py $(ARGS)

bench: $(VENV)/.test ## Measure speed against the forward pass and the usual packages.
	@$(PY) benchmarks/speed.py $(ARGS)

clean: ## Remove the environment and what was built.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "onnxcam needs Python 3.11 or newer with its venv module; none was found$(if $(PYTHON), at $(PYTHON))." >&2; \
	  echo "On Debian or Ubuntu: apt-get install python3-venv. Elsewhere: make PYTHON=/path/to/python3.11 …" >&2; exit 1; \
	elif ! "$(PYTHON)" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; fi
	@$(say) "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# The OpenCV wheel needs system libraries that a bare server lacks; the headless one needs none and has all that is used here.
$(VENV)/.demo: $(VENV)/.python pyproject.toml
	@$(say) "Installing onnxcam with ONNX Runtime for CPU (about 150 MB)"
	@$(PIP) install --editable '.[cpu]'
	@$(PY) -m compileall -q onnxcam exporters models
	@$(PY) -c 'import cv2' 2>/dev/null || { \
	  $(say) "OpenCV cannot load a system library here ($$($(PY) -c 'import cv2' 2>&1 | tail -n 1)): using opencv-python-headless in its place"; \
	  $(PIP) uninstall --yes opencv-python opencv-python-headless 2>/dev/null; \
	  $(PIP) install 'opencv-python-headless>=4.12' && $(PY) -c 'import cv2'; }
	@touch $@

$(VENV)/.docs: $(VENV)/.demo docs/requirements.txt
	@$(say) "Installing the tools that build the documentation"
	@$(PIP) install --requirement docs/requirements.txt
	@touch $@

# The project itself is not installed again here: its requirements would bring opencv-python back over the headless wheel.
$(VENV)/.test: $(VENV)/.docs tests/requirements.txt tests/requirements-oracles.txt
	@$(say) "Installing PyTorch ($(TORCH)), the test tools and the packages compared with"
	@$(PIP) install $(TORCH)
	@$(PIP) install --requirement tests/requirements.txt
	@$(PIP) install --no-deps --requirement tests/requirements-oracles.txt
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  $(PY) -m playwright install --only-shell chromium >/dev/null 2>&1 || \
	  $(say) "No Chromium is here and none can be downloaded: tests of pages are skipped (on Debian or Ubuntu: apt-get install chromium)"
	@touch $@
