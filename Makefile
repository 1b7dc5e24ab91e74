# `make demo` and `make test` are all a newcomer needs. Both make their own virtual environment.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What would make `make test` longer than a quarter of an hour.
LONG := $(addprefix tests/workflow/test_,contributing.py module.py offline.py reruns.py)
# Tests run side by side, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES) --dist loadfile

# The folder `tests` of a checkout of transformers, for `make test-peer`.
TESTS ?=

# More options of `make bench-gpu`, such as --out FILE.
BENCH_GPU ?=

.PHONY: demo real test test-study test-audit test-slurm test-chaos test-gpu test-peer bench bench-gpu lint lock docs site clean

demo: $(STAMP)  ## run the embedded study: figures and tables in results/embedded/paper
	$(BIN)/snakemake --cores $(CORES)

real: $(STAMP)  ## a real model, SmolLM2-135M, on real text: under two hours on two cores, see docs/smollm2.md
	$(BIN)/python tools/fetch_smollm2.py
	$(BIN)/snakemake --cores $(CORES) --configfile config/smollm2.yaml

test: $(STAMP) lint  ## run all fast tests, and the whole workflow on the smallest study
	$(PYTEST) $(LONG:%=--ignore=%)

test-study: $(STAMP)  ## the embedded study without any network; all arms; reruns; several processes; a model of one's own; a module; CONTRIBUTING's lists
	$(PYTEST) tests/integration $(LONG)

test-audit: $(STAMP)  ## faults injected into a finished study, each found; signatures, exports, reproduction
	$(PYTEST) tests/audit

test-chaos: $(STAMP)  ## kill a study fifty times, at the moments that hurt most: same bytes
	OMP_NUM_THREADS=1 ISKD_KILLS=50 $(BIN)/pytest -s tests/chaos

test-slurm: $(STAMP)  ## a part of the embedded study on a real SLURM of two nodes, hit by fault after fault (as root: installs SLURM)
	$(BIN)/pytest tests/slurm

test-gpu: $(STAMP)  ## what only a GPU can show: bits, memory, autocast, fused and compiled steps
	$(BIN)/pytest tests/gpu

test-peer: $(STAMP)  ## TESTS=<transformers>/tests: the library's own tests of causal models, on models whose blocks differ
	@test -n "$(TESTS)" || { echo "make test-peer TESTS=<transformers>/tests: name the folder"; exit 2; }
	# The library's tests carry marks that are not ours.
	ISKD_TRANSFORMERS_TESTS="$(abspath $(TESTS))" OMP_NUM_THREADS=1 \
	    $(BIN)/pytest -n $(CORES) -o addopts=-ra tests/peer

bench-gpu: $(STAMP)  ## on a machine with a GPU, in 8 minutes: tokens per second beside a bare loop, as a table; then tests/gpu
	$(BIN)/python -m tests.benchmarks.gpu $(BENCH_GPU)
	timeout 150 $(BIN)/pytest -n 4 tests/gpu

bench: $(STAMP)  ## evaluation, training, compressed models and the workflow itself, each against something else: under half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.evaluation
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.training
	OMP_NUM_THREADS=1 KINETO_LOG_LEVEL=99 $(BIN)/python -m tests.benchmarks.compressed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.workflow --largest 1000 --first-seed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.growth

lint: $(STAMP)  ## formatting, static checks, docstrings, types, Snakemake's own lint
	$(BIN)/ruff format --check scripts tests tools
	$(BIN)/ruff check scripts tests tools
	$(BIN)/python tools/check_docstrings.py
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint

site:  ## the documentation as a site, in build/site; a broken link fails
	test -x build/docs_venv/bin/mkdocs || $(PYTHON) -m venv build/docs_venv
	build/docs_venv/bin/pip install --quiet -r envs/docs.txt
	build/docs_venv/bin/python tools/docs_site.py
	build/docs_venv/bin/mkdocs build --strict --quiet

docs: $(STAMP)  ## write what is generated from code: the config's schema, its table of keys, the rule graph
	$(BIN)/python tools/config_docs.py
	$(BIN)/python tools/rulegraph.py

lock:  ## solve envs/requirements.in anew
	PYTHON=$(PYTHON) envs/lock.sh

$(STAMP): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    "Python 3.11 or newer is needed and $(PYTHON) is older: make PYTHON=<a newer one>")'
	$(PYTHON) -m venv $(VENV)
	# torch first, alone: pip then keeps the build this machine has (CPU or CUDA).
	$(BIN)/pip install --quiet "$$(grep '^torch==' envs/requirements.lock)"
	$(BIN)/pip install --quiet -r envs/requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:  ## remove the environment and everything the workflow made
	rm -rf $(VENV) build results .snakemake
