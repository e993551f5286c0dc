# Two commands are all the set-up there is: `make demo` and `make test`.
# Both install what they need into .venv first; nothing else on the machine is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TABLES := tests/data/tables

.PHONY: demo demo-sweep test test-slow test-full test-lowest test-gpu torture lint audit format bench bench-strategies docs notebook clean

demo: $(READY)  ## Search the embedded demo pipeline: a real search, in minutes, on a CPU
	$(BIN)/accel-search --config configs/demo.toml

demo-sweep: $(READY)  ## Explore 18 configurations of it, in subprocesses
	$(BIN)/accel-explore --sweep configs/demo_sweep.toml

# Two processes of one thread each: threads of one process wait for each other on busy cores.
test: $(READY)  ## Run the tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(READY)  ## Run the long tests: kills, joint searches, Ray, exported scripts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" --numprocesses 2 --dist worksteal

test-full: $(READY)  ## Go through every case of what the tests take a sample of
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m full --numprocesses 2 --dist worksteal

# What depends on torch, diffusers, transformers, NumPy, pandas and Optuna. The test tools are new.
LOWEST := .venv-lowest
LOWEST_TESTS := tests/accelerators tests/runtime tests/storage tests/search tests/test_api.py \
  tests/test_single_file.py

test-lowest: $(READY)  ## Run them, and the demo, with the lowest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable .
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --constraint constraints.txt \
	  pytest pytest-xdist hypothesis
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS) --numprocesses 2 --dist worksteal
	$(LOWEST)/bin/accel-search --config configs/demo.toml --force --run_dir build/lowest \
	  --output build/lowest/search_params.json --log_file build/lowest/search.log \
	  --trials_out build/lowest/trials.json --report build/lowest/report.html

torture: $(READY)  ## Kill searches and sweeps, fill disks, damage files: hours
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability -m torture -v --numprocesses 2 --dist worksteal

test-gpu: $(READY)  ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(READY)  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

audit: $(READY)  ## Look our dependencies up among known vulnerabilities, where there is a network
	scripts/audit.sh

format: $(READY)  ## Put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## Build the documentation site into build/docs
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

notebook: $(READY)  ## Run the docs' notebook anew, and keep its outputs: minutes
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace docs/demo.ipynb \
	  --NotebookClient.record_timing=False --NotebookClient.coalesce_streams=True

bench: $(READY)  ## Measure what the harness adds to the bare pipeline and scoring calls
	$(BIN)/python scripts/benchmarks/bench_harness.py

SEARCHES ?= 100
STRATEGIES = OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmarks/bench_strategies.py \
  --table $(addprefix $(TABLES)/,$(addsuffix .json.gz,deepcache tgate deepcache-tgate)) \
  --seconds tests/data/latency_sdxl_h200.json --searches $(SEARCHES) --processes 2

bench-strategies: $(READY)  ## Search the recorded tables with every strategy: an hour, or SEARCHES=10
	mkdir -p build
	$(STRATEGIES) --prompts drawn --out build/strategies_drawn.json
	$(STRATEGIES) --prompts split --out build/strategies_split.json

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "accel-search needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build
