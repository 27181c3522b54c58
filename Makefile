# The two commands of a newcomer are `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Small networks on a CPU compile longer than they gain from full optimisation.
export XLA_FLAGS ?= --xla_backend_optimization_level=1

.PHONY: demo compare test test-slow test-long check check-plan check-diffusers dist docs format clean

demo: $(VENV)/installed  ## Train, distil and judge on the embedded digits.
	$(BIN)/diffdistill train --config=digits:progressive --workdir=runs/digits
	$(BIN)/diffdistill evaluate --workdir=runs/digits

compare: $(VENV)/installed  ## Every paper from one teacher, in one table.
	$(BIN)/diffdistill train --config=digits:all --workdir=runs/compare
	$(BIN)/diffdistill evaluate --workdir=runs/compare

test: export XLA_FLAGS = --xla_backend_optimization_level=0
test: $(VENV)/installed-dev  ## Tests that take seconds each.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not long"

test-slow: $(VENV)/installed-dev  ## Those that take longer: processes, kills, meshes.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-long: $(VENV)/installed-dev  ## Those that take minutes each: thirty kills.
	$(BIN)/python -m pytest -m long

check: $(VENV)/installed-dev  ## Format, lint, types, doors.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -q tests/doors_test.py

check-plan: $(VENV)/installed-plan  ## Plans, by the TPU compiler.
	PYTHONPATH=$(VENV)/plan $(BIN)/python -m pytest -q tests/planning/tpu_test.py

check-diffusers: $(VENV)/installed-diffusers  ## Models, with diffusers itself.
	PYTHONPATH=$(VENV)/diffusers $(BIN)/python -m pytest -q -m torch tests/interop

dist: $(VENV)/installed-dev  ## A wheel and its source archive, in dist/.
	rm -rf dist
	$(BIN)/python -m build --no-isolation

docs: $(VENV)/installed-docs  ## The site, in build/site; a broken link is an error.
	PYTHONPATH=. $(BIN)/python docs/pages.py build/pages
	PYTHONPATH=$(VENV)/docs NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache build dist *.egg-info

$(VENV)/installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/installed-plan: $(VENV)/installed-dev requirements-plan.txt
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/plan -r requirements-plan.txt
	touch $@

$(VENV)/installed-diffusers: $(VENV)/installed-dev requirements-diffusers.txt
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/diffusers -r requirements-diffusers.txt
	touch $@

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/docs -r requirements-docs.txt
	touch $@
