# make demo   install into .venv, train on synthetic images, predict, score, write a picture report
# make test   install into .venv, lint, type checks, all tests
# PYTHON=...  the interpreter that .venv is made from; VENV=... another folder for it
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH ?= torch==2.13.0
JOBS ?= 2

.PHONY: help demo test install build lint check bench clean

help:
	@sed -n '1,3p' Makefile

# The environment is made once; it is renewed when the packaging changes. Torch comes first, because the build needs it.
$(VENV)/.ready: pyproject.toml setup.py Makefile
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet "$(TORCH)" numpy "setuptools>=77" wheel "pybind11>=2.13" ninja
	$(PY) -m pip install --quiet --no-build-isolation --no-deps "elasticdeform>=0.5.1"
	$(PY) -m pip install --no-build-isolation --editable ".[test]"
	@touch $@

install: $(VENV)/.ready

# Compiles what changed since the installation.
build: install
	$(PY) setup.py --quiet build_ext --inplace

demo: build
	$(VENV)/bin/unet-fast demo --out demo

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: build lint
	$(PY) -m pytest -n $(JOBS) --dist loadfile

clean:
	rm -rf $(VENV) build *.egg-info unet_fast/*.so unet_fast/_build_info.json
