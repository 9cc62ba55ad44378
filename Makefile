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

# A run of the tests starts thousands of processes: without cached bytecode each compiles again what it imports, vLLM for 10 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check slow lint style types contracts docs picture bench soak proto golden lock sbom release clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## Run a real job that is gated, metered and settled in tokens
	@$(BIN)/python -m fabric.demo

# What fails beside other tests is run once more by itself, in a new process: what fails there has failed, and both are shown.
# Both halves beside each other took no less time on two cores, and starved what has a bound in seconds.
AGAIN := --last-failed --last-failed-no-failures none
BESIDE := -q --dist loadscope --how-far
test: setup ## Run the tests, which wait much: three at a time what needs no Ray cluster, then two at a time what does
	$(BIN)/pytest $(BESIDE) without-ray -n 3 $(WITHOUT_RAY) || { [ $$? = 1 ] && $(BIN)/pytest -q $(AGAIN) $(WITHOUT_RAY); }
	$(BIN)/pytest $(BESIDE) with-ray -n 2 $(WITH_RAY) || { [ $$? = 1 ] && $(BIN)/pytest -q $(AGAIN) $(WITH_RAY); }
WITHOUT_RAY := --ignore=tests/bench -m "not ray and not soak"
# Only these folders have such tests (tests/test_slow.py): nobody imports the others' libraries for them.
RAYS := $(wildcard tests/live*) tests/cluster/ray_cluster tests/strangers
WITH_RAY := -o cache_dir=.pytest_cache/with-ray -m "ray and not soak" $(RAYS)

# In three minutes, on two idle cores: what takes longer or starts a server is left out, and said at the end.
check: lint ## Check while you work: style, types, contracts, and the quick tests that need no server
	$(BIN)/pytest -q -n 3 --dist loadscope $(QUICK)
	@echo "left out, and run by make test: $$(grep -vc '^#' tests/slow.txt) tests that take more than a second (tests/slow.txt), and whatever starts Ray, vLLM, PostgreSQL or S3's stand-in"
QUICK := --ignore=tests/bench --ignore-glob='*/tests/live*' -m "not (ray or vllm or postgres or s3 or soak or slow)"

slow: setup ## Write tests/slow.txt anew, which `make check` leaves out and by which long tests begin first: on an idle machine
	$(BIN)/pytest -q -n 2 --dist loadscope --measure-slow $(WITHOUT_RAY)
	$(BIN)/pytest -q -n 2 --dist loadscope --measure-slow $(WITH_RAY)

# What a client imports, which runs on Python 3.10 too.
CLIENT := -p fabric.cli -p fabric.client -p fabric.sdk -p fabric.transport -p fabric.wire -p fabric.results -p fabric.checkpoints -p fabric.audit.verify -p fabric.audit.witness \
	$(addprefix -m fabric.,accelerators context context.job errors extras parcels progress units versions visible audit.one_file audit.signing focus.columns focus.rules) -m fabric

lint: style types contracts ## Check style, types and the direction of imports, as the pre-commit hooks do

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 --follow-imports=silent $(CLIENT)

contracts: setup
	$(BIN)/lint-imports --no-cache

# What a user's own code may import, by its public paths.
API := $(addprefix fabric.,sdk context errors results audit.verify) $(addprefix training.,session session_loop loop.batches \
	learning_rate pretrained export sharded functions integrations.huggingface integrations.lightning integrations.ray)
API_TO ?= build/api
docs: setup ## Write build/api: the reference of what a user's own code may import, made from docstrings
	$(BIN)/python -W error::UserWarning -W error::RuntimeWarning -m pdoc -d google --no-show-source -o $(API_TO) $(API)

picture: setup ## Draw docs/demo.svg from a run of the demo
	$(BIN)/python docs/picture.py

bench: setup ## Measure speed, as ratios within one run
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

soak: setup ## Run the long tests: a thousand crashes, many random histories
	$(BIN)/pytest -q --ignore=tests/bench -m soak --timeout=0 --hypothesis-profile=soak

proto: setup ## Generate fabric/wire/*_pb2* from fabric.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fabric/wire/fabric.proto

golden: setup ## Write tests/journals/<release>: a journal that every later version must open and decide the same
	$(BIN)/python -m tests.journals.golden

# What a release installs, with the hash of every file, and no address: where from is the installer's choice. `client` is
# the package alone, on any system and Python; `base` is what every node needs, `cpu` and `gpu` the extras. The cpu lock names
# torch's own CPU build (+cpu), which PyPI doesn't have: it comes from torch's index or a wheelhouse. These three are made on
# Linux on x86-64, and good there.
LOCK := $(BIN)/uv pip compile -q pyproject.toml --generate-hashes --no-header --no-annotate \
	--no-emit-index-url

lock: setup ## Write locks/*.txt: all that a release installs, with hashes
	$(LOCK) --universal --python-version 3.10 -o locks/client.txt
	$(LOCK) --python-version 3.11 --extra cluster -o locks/base.txt
	$(LOCK) --python-version 3.11 --extra cpu -o locks/cpu.txt
	env -u UV_TORCH_BACKEND $(LOCK) --python-version 3.11 --extra gpu -o locks/gpu.txt

sbom: setup ## Write dist/sbom-*.cdx.json: what is in a release, in CycloneDX
	mkdir -p dist
	for lock in client base cpu gpu; do \
	  $(BIN)/uv tool run -q --from "cyclonedx-bom>=7" cyclonedx-py requirements --pyproject pyproject.toml \
	    --output-reproducible --of JSON -o dist/sbom-$$lock.cdx.json locks/$$lock.txt || exit 1; done

release: sbom ## Build the wheels and the source archive, and put them beside their locks, SBOMs and their hashes into dist/
	$(BIN)/python .ci/wheels.py dist
	cp locks/client.txt dist/lock-client.txt; cp locks/base.txt dist/lock-base.txt; cp locks/cpu.txt dist/lock-cpu.txt; cp locks/gpu.txt dist/lock-gpu.txt
	cd dist && sha256sum *.whl *.tar.gz *.txt *.cdx.json > SHA256SUMS

clean: ## Remove what the tools left behind; the environment stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build *.egg-info
	find fabric serving training tests -name __pycache__ -prune -exec rm -rf {} +

setup: .venv/$(HARDWARE) ## Make the environment in .venv
.venv/$(HARDWARE): pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e ".[$(HARDWARE)]" --group dev --group strangers
	touch $@
