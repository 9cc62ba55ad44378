# Two commands matter: `make demo` and `make test`. Each sets up what it needs.
HARDWARE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
PYTHON   ?= python3.11
BIN      := .venv/bin

# uv does not read pip's settings: hand it the wheelhouse where one is set, and the CPU index where none is.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else ifeq ($(HARDWARE),cpu)
export UV_TORCH_BACKEND := cpu
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak proto clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## Run a real job that is gated, metered and settled in tokens
	@$(BIN)/python -m fabric.demo

test: setup ## Run the tests: two at a time what needs no Ray cluster, then one by one what does
	$(BIN)/pytest -q -n 2 --dist loadscope --ignore=tests/bench -m "not ray and not soak"
	$(BIN)/pytest -q --ignore=tests/bench -m "ray and not soak"

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup ## Measure speed, as ratios within one run
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

soak: setup ## Run the long tests: a thousand crashes, many random histories
	$(BIN)/pytest -q --ignore=tests/bench -m soak --timeout=0 --hypothesis-profile=soak

proto: setup ## Generate fabric/wire/*_pb2* from fabric.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fabric/wire/fabric.proto

clean: ## Remove what the tools left behind; the environment stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build *.egg-info
	find fabric serving training tests -name __pycache__ -prune -exec rm -rf {} +

setup: .venv/$(HARDWARE) ## Make the environment in .venv
.venv/$(HARDWARE): pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e ".[$(HARDWARE)]" --group dev
	touch $@
