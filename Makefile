PYTHON ?= python3
ARGS ?=

UV_VERSION := 0.13.9
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# An image installs the package itself, and less beside it: EDITABLE= LOCKS=requirements/cpu.txt
EDITABLE := --editable
LOCKS := $(addprefix requirements/,cpu.txt dev.txt peers.txt data.txt cuda.txt xformers.txt)
CSRC := $(shell find csrc -type f -name '*.cpp' -o -type f -name '*.h')
FORMATTED := $(CSRC) $(shell find csrc tests -type f -name '*.cu') \
	$(shell find tests -type f -name '*.cpp' -o -type f -path 'tests/*.h')

# One stamp for each step of the set-up: older than what it was made from, it is made again.
HAVE_UV := $(VENV)/.have-uv
HAVE_PACKAGES := $(VENV)/.have-packages
HAVE_PROJECT := $(VENV)/.have-project

# PyPI has no CPU build of torch. It comes from where pip is told to look (PIP_FIND_LINKS), and from
# there alone, or else from PyTorch's own index.
space := $(subst ,, )
comma := ,
ifneq ($(strip $(PIP_FIND_LINKS)),)
TORCH_SOURCE := --no-index
export UV_FIND_LINKS := $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
else
TORCH_SOURCE := --default-index $(TORCH_INDEX)
endif
# uv does not read pip's settings; these are the ones that matter behind a mirror.
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifneq ($(PIP_CERT),)
export SSL_CERT_FILE ?= $(PIP_CERT)
endif

.DEFAULT_GOAL := help
.PHONY: help setup serve test soak lint docs cuda-check gpu-kit image-check format lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(HAVE_PROJECT) ## Make .venv with everything in it, and build the extension

serve: setup ## Serve the embedded model on 127.0.0.1:8000; ARGS="--port 9000" adds options
	@exec $(BIN)/fastgen-vllm serve $(ARGS)

test: setup ## Run the tests; ARGS="-k compact" chooses some
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

soak: setup ## Load a server whose pool is too small for half an hour; ARGS="--minutes 5" for less
	@exec $(BIN)/python -m tests.soak $(ARGS)

lint: setup ## Check style and types, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

docs: setup ## Build the documentation site into build/site; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

cuda-check: setup ## Compile the CUDA kernels for all GPUs, and check registers, spills and instructions
	$(BIN)/python -m tests.cuda.gate $(ARGS)

gpu-kit: setup ## Pack what finds out within nine minutes what a GPU can tell, into build/gpu-kit
	$(BIN)/python -m tests.gpu_kit.pack

image-check: setup ## Build the CPU image and try it: needs root, and Debian's buildah and debootstrap
	PATH="$(abspath $(BIN)):$$PATH" docker/check.sh

format: setup ## Format Python and C++
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean: ## Remove everything that was made here; the converted model stays in the user's cache
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fastgen_vllm tests -name '*.so' -delete -o -name __pycache__ -prune -exec rm -rf {} +

# Upgrades what pyproject.toml leaves open.
COMPILE := $(UV) pip compile --upgrade --python-version 3.11 --no-annotate --quiet \
	--python-platform x86_64-manylinux_2_28 --excludes requirements/excludes.txt \
	--custom-compile-command "make lock"
lock: $(HAVE_UV) ## Choose versions anew, for pull requests that change requirements
	$(COMPILE) pyproject.toml requirements/cpu.in --extra cpu -o requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra dev --extra eval -c requirements/cpu.txt \
		-o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra peers -c requirements/dev.txt -c requirements/cpu.txt \
		--overrides requirements/peers-overrides.txt -o requirements/peers.txt
	$(COMPILE) requirements/cuda.in -o requirements/cuda.txt

$(HAVE_UV): Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(HAVE_PACKAGES): $(HAVE_UV) $(LOCKS)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps $(TORCH_SOURCE) $(TORCH)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps $(LOCKS:%=-r %)
	@touch $@

$(HAVE_PROJECT): $(HAVE_PACKAGES) pyproject.toml setup.py $(CSRC)
	PATH="$(abspath $(BIN)):$$PATH" $(UV) pip install --quiet --python $(BIN)/python \
		--no-build-isolation --no-deps $(EDITABLE) .
	@touch $@
