# make demo    install into .venv, train on synthetic images, predict, score, write a picture report to demo/report
# make check   lint, type checks, and a quick core of the tests of every area
# make test    install into .venv with what the tests need, lint, type checks, all tests
# make bench   install, run the benchmarks (BENCH="weight_map --quick" for some), write benchmarks/results
# make docs    the documentation site, in build/docs; a broken link or reference is an error
# make family DATA=DIR   train every system of the sources on public images for a fixed number of steps, write its table
# make build   compile what changed in csrc
# make fuzz    10,000 random cases of every op against independent truths (FUZZ_CASES=..., SEED=..., OPS="weight_map ...")
# make torture   kills, damage, full disks, hostile files and settings, counted: about an hour (TORTURE="signals --scale 0.1" for some)
# make sanitize   the ops' tests on CPU kernels built with AddressSanitizer and UBSan, the NumPy module's threads with TSan
# make cuda-check   compile the CUDA kernels for every architecture (nvcc, no GPU); fails on register spills
# make gpu-check   on a machine with a GPU: build, test, sanitize, benchmark with $(PYTHON) as it is; below 9 minutes
# PYTHON=...   the interpreter that .venv is made from; VENV=... another folder for it; TORCH=... another torch to install
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
FUZZ_CASES ?= 10000
SEED ?= 0
PY := $(VENV)/bin/python
SOURCES := setup.py $(shell find csrc -type f -not -name '*.py*')
# Every process of the tests reads the package compiled by an earlier one.
unexport PYTHONDONTWRITEBYTECODE
# A log that is shown only when its command fails.
QUIETLY = > $(VENV)/log 2>&1 || { cat $(VENV)/log; exit 1; }

.PHONY: help demo check test test-cpu test-emulated test-interpreted install build lint fuzz torture sanitize cuda-check gpu-check bench docs family clean

help:
	@sed -n '1,13p' Makefile

# Made once, and again when the packaging changes. Torch comes first, because the build needs it.
$(VENV)/.installed: pyproject.toml Makefile
	@echo "making the environment $(VENV) and building unet_fast in it (1 to 3 minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --upgrade "pip>=25.1" $(QUIETLY)
	@$(PY) -m pip install "$(TORCH)" numpy "setuptools>=77" wheel "pybind11>=2.13" ninja $(QUIETLY)
	@$(PY) -m pip install --no-build-isolation --editable . $(QUIETLY)
	@touch $(VENV)/.built $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PY) -m pip install --group test $(QUIETLY)
	@$(PY) -m pip install --no-build-isolation --no-deps --no-binary elasticdeform "elasticdeform>=0.5.1" $(QUIETLY)
	@touch $@

# The installation has just compiled everything; later on only what changed is compiled.
$(VENV)/.built: $(SOURCES) | $(VENV)/.installed
	@if [ ! -e $@ ] || [ -n "$$(find $(SOURCES) -newer $@)" ]; then \
		echo "compiling what changed"; $(PY) setup.py build_ext --inplace $(QUIETLY); fi
	@touch $@

install: $(VENV)/.installed

build: $(VENV)/.built

demo: build
	$(VENV)/bin/unet-fast demo --out demo

lint: $(VENV)/.tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: build lint
	$(PY) -m pytest -q -n $(JOBS) -m core

# Each place is a run of its own: Triton decides at the start whether it interprets, and one library is in place at a time.
# The CPU's runs beside all others, which follow each other: three processes, of which two have work at any time. Its output
# is shown as it comes, that of the others at their ends. (The + for that would also run it under make -n, and hand on make's jobs.)
test: build $(VENV)/.tested
	$(MAKE) -j 2 --output-sync=target --no-print-directory test-cpu lint test-emulated test-interpreted

test-cpu: build $(VENV)/.tested
	+$(if $(findstring n,$(firstword -$(MAKEFLAGS))),echo )MAKEFLAGS= $(PY) -m pytest -n $(JOBS) --dist worksteal

test-emulated test-interpreted: test-%: build $(VENV)/.tested
	$(PY) -m pytest --place $*

fuzz: build $(VENV)/.tested
	$(PY) -m tests.fuzz $(OPS) --cases $(FUZZ_CASES) --seed $(SEED) --jobs $(JOBS)

torture: build $(VENV)/.tested
	$(PY) -m tests.torture --seed $(SEED) $(TORTURE)

sanitize: $(VENV)/.tested
	MAX_JOBS=$(JOBS) $(PY) csrc/cpu/sanitize.py $(SANITIZE)

cuda-check: install
	$(PY) csrc/cuda/check.py --jobs $(JOBS) --write benchmarks/results/nvcc/registers.txt

# In the environment of $(PYTHON), which needs torch with CUDA, Triton and the tests' packages; ITEMS="build smoke" for some,
# BUDGET=300 for fewer seconds, RESUME=FILE to go on where an earlier report ended.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(ITEMS) $(if $(BUDGET),--budget $(BUDGET)) $(if $(RESUME),--resume $(RESUME))

bench: build $(VENV)/.tested
	@$(PY) -m pip install --group bench $(QUIETLY)
	$(PY) -m benchmarks $(BENCH)

docs: build
	@$(PY) -m pip install --group docs $(QUIETLY)
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "wrote build/docs/index.html"

# Goes on where it was stopped: what is in the result file is not trained again.
family: build
	$(PY) -m benchmarks.family --data $(DATA)
	$(PY) -m benchmarks.tables

clean:
	rm -rf $(VENV) build *.egg-info unet_fast/*.so unet_fast/_build_info.json
