# `make demo` and `make test` work from nothing: they make a virtual environment and install into it the versions that
# constraints.txt names. uv does the installing where there is one, pip otherwise.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/pip install --quiet) \
	$(addprefix --constraint ,$(CONSTRAINTS))

# The tests start many processes; where Python may not keep what it has compiled, each compiles everything again.
export PYTHONDONTWRITEBYTECODE =

# A process takes a file of tests at a time, in the order of tests/conftest.py.
PARALLEL = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test browser chromium lint newest lowest constraints common clean

demo: $(VENV)/core
	$(BIN)/sail demo --out demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL)

# The page in Chromium; here a test that is skipped is a failure.
browser: $(VENV)/dev chromium
	OMP_NUM_THREADS=1 SAIL_BROWSER_TESTS=required $(BIN)/pytest tests/page

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { apt-get update && apt-get install --yes --no-install-recommends chromium; }

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests with the newest release of everything, without and with the page, whose gradio holds Pillow back; and with
# the oldest that pyproject.toml allows.
newest:
	$(MAKE) $(VENV)-newest/all VENV=$(VENV)-newest CONSTRAINTS=
	$(call run_tests,$(VENV)-newest)
	$(MAKE) $(VENV)-newest/dev VENV=$(VENV)-newest CONSTRAINTS=
	$(call run_tests,$(VENV)-newest)

lowest: $(VENV)-lowest/bounds.txt
	$(MAKE) $(VENV)-lowest/test VENV=$(VENV)-lowest CONSTRAINTS=$(VENV)-lowest/bounds.txt
	$(call run_tests,$(VENV)-lowest)

$(VENV)-lowest/bounds.txt: pyproject.toml tools/lower_bounds.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet --no-deps --editable .
	$(VENV)-lowest/bin/python -m tools.lower_bounds > $@

define run_tests
	$(1)/bin/python -c "from sail_encoder.io.versions import versions; print(versions())"
	OMP_NUM_THREADS=1 $(1)/bin/pytest $(PARALLEL)
endef

# Needs uv, which resolves for all supported releases of Python at once.
constraints:
	uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-emit-package sail-encoder \
		--no-annotate --no-header --upgrade --output-file constraints.txt pyproject.toml

# The model classes under transformers' own common tests, which come with its source distribution.
common: $(VENV)/dev $(VENV)/transformers-source
	$(BIN)/pytest -c tests_transformers/pytest.ini tests_transformers

$(VENV)/transformers-source:
	$(BIN)/pip download --quiet --no-deps --no-binary transformers --dest $(VENV)/download \
		transformers==$$($(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")
	rm -rf $@.part && mkdir $@.part
	tar -xf $(VENV)/download/transformers-*.tar.gz --strip-components 1 -C $@.part
	touch $@.part/tests/__init__.py && mv $@.part $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "Installing what sail-encoder runs on (PyTorch, transformers, timm, ...) into $(VENV); this takes minutes once."
	$(INSTALL) --editable .
	touch $@

$(VENV)/test: $(VENV)/core
	@echo "Installing what its tests need into $(VENV)."
	$(INSTALL) --editable ".[test]"
	touch $@

$(VENV)/all: $(VENV)/core
	@echo "Installing what all tests but those of the page need into $(VENV)."
	$(INSTALL) --editable ".[all]"
	touch $@

$(VENV)/dev: $(VENV)/core
	@echo "Installing what its tests and checks need into $(VENV)."
	$(INSTALL) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lowest demo
