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

setup: .venv/$(HARDWARE)
.venv/$(HARDWARE): pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e ".[$(HARDWARE)]" --group dev
	touch $@
