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
.PHONY: help setup demo test lint bench soak proto lock sbom release clean

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

# What a release installs, with the hash of every file, and no address: where from is the installer's choice. `base` is
# what every node needs, `cpu` and `gpu` the extras. The cpu lock names torch's own CPU build (+cpu), which PyPI doesn't
# have: it comes from torch's index or a wheelhouse. Made on Linux on x86-64, and good there.
LOCK := $(BIN)/uv pip compile -q pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url

lock: setup ## Write locks/*.txt: all that a release installs, with hashes
	$(LOCK) -o locks/base.txt
	$(LOCK) --extra cpu -o locks/cpu.txt
	env -u UV_TORCH_BACKEND $(LOCK) --extra gpu -o locks/gpu.txt

sbom: setup ## Write dist/sbom-*.cdx.json: what is in a release, in CycloneDX
	mkdir -p dist
	for lock in base cpu gpu; do \
	  $(BIN)/uv tool run -q --from "cyclonedx-bom>=7" cyclonedx-py requirements --pyproject pyproject.toml \
	    --output-reproducible --of JSON -o dist/sbom-$$lock.cdx.json locks/$$lock.txt || exit 1; done

release: sbom ## Build the wheel, and put it beside its locks, SBOMs and their hashes into dist/
	$(BIN)/uv build -q --wheel -o dist
	cp locks/base.txt dist/lock-base.txt; cp locks/cpu.txt dist/lock-cpu.txt; cp locks/gpu.txt dist/lock-gpu.txt
	cd dist && sha256sum *.whl *.txt *.cdx.json > SHA256SUMS

clean: ## Remove what the tools left behind; the environment stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build *.egg-info
	find fabric serving training tests -name __pycache__ -prune -exec rm -rf {} +

setup: .venv/$(HARDWARE) ## Make the environment in .venv
.venv/$(HARDWARE): pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e ".[$(HARDWARE)]" --group dev
	touch $@
