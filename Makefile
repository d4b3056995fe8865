# make demo               draw synthetic tiles, train, export, infer, compare
# make demo DATA=folder   the same with your own tiles (GROUPS=groups.csv if you have groups)
# make test               lint, types, tests
# make docs               build the documentation into build/site (open build/site/index.html)
# make tables             write the tables of README.md and docs/ from benchmarks/results, and
#                         the reference of the commands from the code
# make gpu-check          everything that only a GPU can prove (BUNDLE=folder TILES=folder)
# make kernels            compile the CUDA kernels and print what they use
# make wheel              build the package's wheel: manylinux, the same bytes each time (dist/)
# make wheelhouse         a folder that installs the workstation offline (dist/wheelhouse):
#                         PYTHONS="python3.11 python3.12" EXTRAS="parquet tiff" GPU=1
# make sbom               what a workstation installs, as CycloneDX (dist/wheelhouse/*.cdx.json)
# make locks              renew release/locks from pyproject.toml (UPGRADE=1: take newer versions)
# All set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
GROUPS ?=
RECIPE ?= $(if $(DATA),quick,demo)
OUT ?= demo

BUNDLE ?=
TILES ?=

RELEASE := $(VENV)/release
PYTHONS ?= $(PYTHON)
EXTRAS ?=
GPU ?=
UPGRADE ?=
LOCKED := train parquet tiff slides serve cluster gpu rtx docs pages dev

.PHONY: demo test lint types unit slow docs tables gpu-check gpu-test kernels clean \
	wheel wheelhouse sbom locks

demo: $(VENV)/.ready-demo
	$(BIN)/edgelung demo --out "$(OUT)" --recipe $(RECIPE) \
		$(if $(DATA),--data "$(DATA)") $(if $(GROUPS),--groups "$(GROUPS)")

test: lint types docs unit

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# The rooms map into one package only once installed, so types are checked on the built wheel.
types: $(VENV)/.ready
	rm -rf build
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/python -m zipfile -e build/wheel/*.whl build/installed
	cd build/installed && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p edgelung

unit: $(VENV)/.ready
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --cov --cov-report=term:skip-covered

slow: $(VENV)/.ready
	$(BIN)/pytest -m "slow and not gpu"

# Strict: a broken link is an error.
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

tables: $(VENV)/.ready
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python docs/commands.py

# Offline: what is installed is taken as it is, however old.
gpu-check: $(if $(wildcard $(VENV)/.ready),,$(VENV)/.ready)
	$(BIN)/edgelung gpu-check --out benchmarks/results \
		$(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(TILES),--tiles "$(TILES)")

# The tests that need a card; without one they say so.
gpu-test: $(if $(wildcard $(VENV)/.ready),,$(VENV)/.ready)
	$(BIN)/pytest -m gpu

kernels: $(VENV)/.ready
	$(BIN)/python -m edgelung.kernels.build

wheel: $(RELEASE)/.ready
	$(RELEASE)/bin/python release/own_wheel.py dist

# The SBOM is made from what the wheelhouse has installed, so one command makes both.
sbom wheelhouse: wheel
	$(RELEASE)/bin/python release/wheelhouse.py dist/wheelhouse --wheel dist/edgelung-*.whl \
		--pythons $(PYTHONS) --extras $(EXTRAS) $(if $(GPU),gpu)

# One resolution for all, so that the same package has the same version in every lock.
locks: export UV_CUSTOM_COMPILE_COMMAND = make locks
locks: COMPILE = $(RELEASE)/bin/uv pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-emit-index-url --quiet
locks: $(RELEASE)/.ready
	$(COMPILE) --all-extras --group release $(if $(UPGRADE),--upgrade) -o release/locks/all.txt
	$(COMPILE) -c release/locks/all.txt -o release/locks/base.txt
	set -e; for extra in $(LOCKED); do \
		$(COMPILE) -c release/locks/all.txt --extra $$extra -o release/locks/$$extra.txt; done
	$(subst pyproject.toml,,$(COMPILE)) -c release/locks/all.txt --group release \
		-o release/locks/release.txt

# The tools of a release, each as its lock says.
$(RELEASE)/.ready: release/locks/release.txt
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/python -m pip install -q --require-hashes -r $<
	touch $@

# The demo needs no tools of development.
$(VENV)/.ready: EXTRA = dev
$(VENV)/.ready-demo: EXTRA = train
$(VENV)/.ready-docs: EXTRA = docs
$(VENV)/.ready $(VENV)/.ready-demo $(VENV)/.ready-docs: pyproject.toml setup.py kernels/resize_cpu.cpp kernels/resize.h
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "setuptools>=77" wheel
	$(BIN)/python -m pip install -q -e ".[$(EXTRA)]"
	touch $@

clean:
	rm -rf build dist $(VENV) kernels/*.so
