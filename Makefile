# make demo               draw synthetic tiles, train, export, infer, compare
# make demo DATA=folder   the same with your own tiles (GROUPS=groups.csv if you have groups)
# make test               lint, types, tests
# make docs               build the documentation into build/site (open build/site/index.html)
# make tables             write the tables of README.md and docs/ from benchmarks/results
# make gpu-check          everything that only a GPU can prove (BUNDLE=folder TILES=folder)
# make kernels            compile the CUDA kernels and print what they use
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

.PHONY: demo test lint types unit slow docs tables gpu-check gpu-test kernels clean

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
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow and not gpu" --cov --cov-report=term:skip-covered

slow: $(VENV)/.ready
	$(BIN)/pytest -m "slow and not gpu"

# Strict: a broken link is an error.
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

tables: $(VENV)/.ready
	$(BIN)/python benchmarks/tables.py

# Offline: what is installed is taken as it is, however old.
gpu-check: $(if $(wildcard $(VENV)/.ready),,$(VENV)/.ready)
	$(BIN)/edgelung gpu-check --out benchmarks/results \
		$(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(TILES),--tiles "$(TILES)")

# The tests that need a card; without one they say so.
gpu-test: $(if $(wildcard $(VENV)/.ready),,$(VENV)/.ready)
	$(BIN)/pytest -m gpu

kernels: $(VENV)/.ready
	$(BIN)/python -m edgelung.kernels.build

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
	rm -rf build $(VENV) kernels/*.so
