# Both targets work from nothing: they make the virtual environment and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test common install clean

demo: install
	$(BIN)/sail demo --out demo

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

# The model classes under transformers' own common tests, which come with its source distribution.
common: install $(VENV)/transformers-source
	$(BIN)/pytest -c tests_transformers/pytest.ini tests_transformers

$(VENV)/transformers-source:
	$(BIN)/pip download --quiet --no-deps --no-binary transformers --dest $(VENV)/download \
		transformers==$$($(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")
	rm -rf $@.part && mkdir $@.part
	tar -xf $(VENV)/download/transformers-*.tar.gz --strip-components 1 -C $@.part
	touch $@.part/tests/__init__.py && mv $@.part $@

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
