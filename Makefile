# Everything happens inside $(VENV); nothing is installed outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# Plain %-formatting, so that an old interpreter prints this message and no syntax error.
REQUIRE_311 = -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"SPR-OR needs Python 3.11 or newer, but %s is %s. Name another one, for example: \
	rm -rf $(VENV) && make setup PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'

.PHONY: setup demo test lint types check clean

setup: $(STAMP)

# An environment that exists already is kept and completed; the stamp says whether it is up to
# date with the two files, and with its interpreter (replaced when it is gone or dangling).
$(STAMP): pyproject.toml constraints.txt $(BIN)/python
	@$(BIN)/python $(REQUIRE_311)
	@echo "Installing SPR-OR and its dependencies into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt -e ".[dev,ray]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) $(REQUIRE_311)
	@rm -f $(BIN)/python*
	@$(PYTHON) -m venv $(VENV)

demo: setup
	@mkdir -p build
	$(BIN)/spr-or verify --json build/verify.json --plot build/ladders.png
	@rm -rf build/digits
	$(BIN)/spr-or run experiments/recipes/digits.toml --out build/digits
	@echo "Pictures of the ladders: build/ladders.png. Report of the pruning run: open build/digits/report.html"

test: setup
	$(BIN)/python -m pytest -n auto

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy spr_or models

check: lint types test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find spr_or models tests -name __pycache__ -prune -exec rm -rf {} +
