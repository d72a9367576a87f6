# `make retrain` and `make test` need python 3.11+, venv and make; everything else they install into .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' requirements.lock)

# inputs of `make retrain`: a parameter file and a dataset folder; other than the defaults they get their own workspace
PARAMS ?=
DATA ?=
ARGS ?=

# quiet and offline: no tool reports home, model hubs are not asked, one thread a process
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := true
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install retrain test drills quick lint audit ui prefect backends lock clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(VENV)/.installed  ## create .venv with pinned dependencies

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

retrain: install  ## the whole DAG: data to champion; PARAMS=params/photos.yaml DATA=folder for others
	$(BIN)/perfusion retrain $(if $(PARAMS),--params '$(PARAMS)') $(if $(DATA),--data '$(DATA)') $(ARGS)

test: install  ## every test but the drills, in two processes (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

drills: install  ## retraining on shared servers, on a worker, and with every connection followed (many minutes)
	$(BIN)/python -m pytest -m drill $(ARGS)

quick: install  ## tests that train nothing and run no flow (seconds)
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check perfusion tasks flows tests benchmarks deploy
	$(BIN)/ruff format --check perfusion tasks flows tests benchmarks deploy
	$(BIN)/mypy

audit: install  ## known vulnerabilities of every pinned package; needs a network (see docs/operations.md)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	$(VENV)/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip $(ARGS)

ui: install  ## MLflow: runs, curves, pictures, registry, at http://127.0.0.1:5000
	$(BIN)/perfusion ui

prefect: install  ## Prefect's own pages: flow runs, states, logs, at http://127.0.0.1:4200
	mkdir -p work/prefect && PREFECT_HOME=$(CURDIR)/work/prefect $(BIN)/prefect server start

backends: install  ## PostgreSQL, S3, MLflow and Prefect as others share them, on loopback (docs/backends.md)
	$(BIN)/python -m deploy.local work/backends

lock:  ## write requirements.lock from what .venv holds
	{ sed -n '/^#/p' requirements.lock; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | \
	    sed 's/+[a-z0-9]*$$//' | grep -vE '^(xformers|pip)='; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:  ## remove what was computed here (work/, data/, mlruns/, the DVC cache); .venv stays
	rm -rf work data dvc.lock .dvc/cache .dvc/tmp .pytest_cache .ruff_cache .mypy_cache
	find mlruns -mindepth 1 ! -name README.md ! -name .gitignore -delete
