# `make reproduce` and `make test` set up all that they need: a machine with Python 3.11 or newer is enough.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Nothing phones home: DVC's analytics, MLflow's and ONNX Runtime's telemetry, Ray's usage statistics.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export ORT_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0

# What the tests of other versions run: everything but the long ones and the formatting.
QUICK := -m "not slow and not shared" -q

.PHONY: help setup reproduce test drills lint format bench docs ui server lock params clean doctor sbom audit minimum newest

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "darkarc needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: setup  ## the whole pipeline: from nothing to a registered champion
	dvc repro

lint: setup  ## formatting, style, types and the order of the folders
	ruff format --check .
	ruff check .
	mypy
	lint-imports

# One thread a process: two processes of two threads each would wait for each other on two cores.
# A third process does not make it quicker: studies fill both cores. The files with long tests are
# handed out first (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint  ## lint, then every test but the drills, a file at a time on each of two cores
	$(PYTEST) -m "not drill"

drills: setup  ## the faults and clusters that are played through for minutes: kills, lost nodes, ray submit, Slurm
	$(PYTEST) -m drill

format: setup  ## let ruff mend what it can
	ruff format .
	ruff check --fix .

bench: setup  ## every benchmark, one after the other; they print ratios
	@for file in benchmarks/*.py; do echo "== $$file"; python $$file || exit 1; done

docs: setup  ## the documentation, into site/
	mkdocs build --strict

ui: setup  ## the MLflow UI on http://127.0.0.1:5000
	python -m darkarc ui

server: setup  ## an MLflow server for a team on http://127.0.0.1:5000, on the PostgreSQL of DARKARC_SERVER_DATABASE
	python -m darkarc server $(SERVER)

doctor: setup  ## what is wrong with this set-up, and what to do
	python -m darkarc doctor

sbom: setup  ## a software bill of materials of requirements.lock, CycloneDX, into reports/sbom.json
	@mkdir -p reports
	python docs/sbom.py > reports/sbom.json

audit: setup  ## known vulnerabilities of what requirements.lock pins; needs the network
	@pip-audit --strict --disable-pip --require-hashes -r requirements.lock --progress-spinner off || { \
	  echo "make audit: either a package above has a known vulnerability (raise it: make lock), or the database of" >&2; \
	  echo "make audit: vulnerabilities could not be asked (no network, or a mirror without it): then nothing is known." >&2; \
	  exit 1; }

minimum: setup  ## the tests with the oldest versions that pyproject.toml allows, in .venv-minimum
	uv pip compile pyproject.toml --group dev --resolution lowest-direct --python-version 3.11 --no-annotate \
	  --quiet --output-file .venv-minimum.txt
	uv venv --quiet --clear --python $(VENV)/bin/python .venv-minimum
	uv pip install --quiet --python .venv-minimum/bin/python -r .venv-minimum.txt
	uv pip install --quiet --python .venv-minimum/bin/python --no-deps --editable .
	.venv-minimum/bin/python -m pytest $(QUICK)

newest: setup  ## the tests with the newest versions of everything, in .venv-newest
	uv venv --quiet --clear --python $(VENV)/bin/python .venv-newest
	uv pip install --quiet --python .venv-newest/bin/python --upgrade --group dev --editable .
	.venv-newest/bin/python -m pytest $(QUICK)

lock: setup  ## upgrade requirements.lock on purpose
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --upgrade \
	  --custom-compile-command "make lock" --constraint constraints.txt --output-file requirements.lock

params: setup  ## params.yaml as src/darkarc/config describes it
	python -c 'import darkarc.config; print(darkarc.config.template(), end="")' > params.yaml.new
	mv params.yaml.new params.yaml

clean:  ## remove the environment and what the pipeline made; the registry (mlflow.db, mlartifacts) stays
	rm -rf $(VENV) .venv-minimum* .venv-newest data reports site .darkarc .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
