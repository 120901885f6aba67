PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults lint format bench clean

demo: $(VENV)/installed
	$(BIN)/unconv report cifar-vgg --size 32 --effort 0.35 --samples 20 --out runs/demo

test: $(VENV)/installed
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

# kills, full disks, malformed files, 100,000 images; -rP prints the figures (a quarter of an hour)
test-faults: $(VENV)/installed
	$(BIN)/pytest -rP tests/robustness tests/fuzz

lint: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright

format: $(VENV)/installed
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# glibc gives buffers of this size back after every call; kept, both sides measure arithmetic instead of page faults
bench: $(VENV)/installed
	MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 $(BIN)/python benchmarks/one_step_iht.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
