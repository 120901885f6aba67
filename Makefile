PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
CODE := src tests benchmarks experiments docs
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-faults e2e lint format bench gpu-tests docs package clean

# the bundled network, trained at 32 pixels, on photographs of 64 that ship with scikit-image; says at the end where the page is
demo: $(VENV)/installed
	$(BIN)/unconv report cifar-vgg --size 64 --limit 2 --layers features.6 features.12 features --passes 16 --samples 5 --out runs/demo

test: $(VENV)/installed
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

# kills, full disks, malformed files, 100,000 images; -rP prints the figures (a quarter of an hour)
test-faults: $(VENV)/installed
	$(BIN)/pytest -rP tests/robustness tests/fuzz

# the report page in headless Chromium (Debian's package chromium, or Chrome)
e2e: $(VENV)/installed
	$(INSTALL) -e ".[e2e]"
	$(BIN)/pytest -rs tests/reporting/test_page_in_browser.py

lint: $(VENV)/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright

format: $(VENV)/installed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# our steps beside bare torch calls, and other people's solvers to equal error (docs/benchmarks.md)
bench: $(VENV)/installed
	$(INSTALL) -e ".[bench]"
	MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 $(BIN)/python benchmarks/floors.py
	MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 $(BIN)/python benchmarks/peers.py

# what a GPU computes equals what the CPU computes
gpu-tests: $(VENV)/installed
	$(BIN)/pytest -m gpu

# the site in docs/_build/html: every example run, every doctest, every link inside it; no network
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/sphinx-build -q -W -b doctest -d docs/_build/doctrees docs docs/_build/doctest
	$(BIN)/python docs/check_site.py docs/_build/html

# sdist and wheel, installed in a clean environment and started there
package: $(VENV)/installed
	$(BIN)/pytest tests/test_package.py
	$(BIN)/python -m build --no-isolation --outdir dist

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs dist docs/_build docs/examples docs/project .pytest_cache .ruff_cache .hypothesis
