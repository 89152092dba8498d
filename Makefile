# Every target sets up what it needs on a fresh machine: Python 3.10 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= demo

.PHONY: demo test check format bench clean

demo: $(STAMP)
	$(BIN)/clipkit demo --output $(DEMO_DIR)

# A file of tests stays in one process, which shares what the file has made.
test: $(STAMP)
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_dependency_rule.py tests/test_packaging.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/prompts.py

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO_DIR) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
