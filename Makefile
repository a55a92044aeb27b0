# Each command sets up what it needs: a virtual environment with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench fix clean

demo: $(VENV)/installed
	$(BIN)/python -m export --target raspberry-pi --model vit-pe-fmnist --out out/demo

test: $(VENV)/installed lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/onnx_ties.py
	$(BIN)/python benchmarks/one_pass.py
	$(BIN)/python benchmarks/structures.py
	$(BIN)/python benchmarks/weight_expressions.py
	$(BIN)/python benchmarks/tflite_ties.py
	$(BIN)/python benchmarks/coreml_ties.py
	$(BIN)/python benchmarks/estimate_check.py
	$(BIN)/python benchmarks/agent_overhead.py
	$(BIN)/python benchmarks/tensorrt_ties.py
	$(BIN)/python -m benchmarks.browser

fix: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-litert-torch build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
