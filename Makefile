# Everything happens inside $(VENV); nothing is installed outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# One stamp for each set of packages: a target waits only for what it needs.
RUN := $(VENV)/.installed-run
TEST := $(VENV)/.installed-test
LINT := $(VENV)/.installed-lint
DOCS := $(VENV)/.installed-docs
DEV := $(VENV)/.installed-dev

# Plain %-formatting, so that an old interpreter prints this message and no syntax error.
REQUIRE_311 = -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"SPR-OR needs Python 3.11 or newer, but %s is %s. Name another one, for example: \
	rm -rf $(VENV) && make setup PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'

# Two installations at once would step on each other.
.NOTPARALLEL:

.PHONY: setup demo demo-full test test-slow test-long lint types docs check gpu clean

setup: $(DEV)
	@touch $(RUN) $(TEST) $(LINT) $(DOCS)

# An environment that exists already is kept and completed; a stamp says whether its set is up to
# date with these files and with the interpreter (replaced when it is gone or dangling).
#
# uv is several times faster than pip, but it reads none of pip's settings. They decide which
# build of torch is fetched, gigabytes of CUDA or none. So pip installs torch, uv has to leave that
# very build in place, and whatever uv cannot do is left to pip.
$(VENV)/.installed-%: pyproject.toml setup.py constraints.txt $(BIN)/python
	@$(BIN)/python $(REQUIRE_311)
	@echo "Installing SPR-OR ($*) into $(VENV) (a few minutes the first time)"
	@wanted="$(if $(filter run,$*),.,.[$*])"; \
	if command -v uv >/dev/null \
		&& $(PIP) install -c constraints.txt torch \
		&& $(PIP) freeze | grep '^torch==' >$(VENV)/torch.txt \
		&& uv pip install --quiet --python $(BIN)/python \
			-c constraints.txt -c $(VENV)/torch.txt -e "$$wanted"; \
	then :; \
	else $(PIP) install -c constraints.txt -e "$$wanted"; \
	fi
	@touch $@

$(BIN)/python:
	@$(PYTHON) $(REQUIRE_311)
	@rm -f $(BIN)/python* $(VENV)/.installed-*
	@$(PYTHON) -m venv $(VENV)

# Side by side, one core each. The output of `verify` follows that of the run, so that both can be
# read; Ctrl-C ends both.
demo: SEEDS = --set seeds=[0]
demo demo-full: $(RUN)
	@mkdir -p build && rm -rf build/digits
	@echo "Proving the formulations and pruning a small network, side by side (two minutes)"
	@export OMP_NUM_THREADS=1; \
	$(BIN)/spr-or verify --json build/verify.json --plot build/ladders.png >build/verify.log 2>&1 & \
	verify=$$!; trap 'kill $$verify 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/spr-or run digits $(SEEDS) --out build/digits; run=$$?; \
	wait $$verify; verified=$$?; cat build/verify.log; \
	test $$run -eq 0 && test $$verified -eq 0
	@echo "Bounds of small problems, each proven:  build/ladders.png"
	@echo "Report of the pruned network:           build/digits/report.html"

test: $(TEST)
	$(BIN)/python -m pytest -n auto

test-slow: $(TEST)
	$(BIN)/python -m pytest -n auto -m "slow and not gpu"

# Two thousand random networks, and every hard one in every way.
test-long: $(TEST)
	$(BIN)/python -m pytest -n auto -m long

lint: $(LINT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(LINT)
	$(BIN)/mypy spr_or models

docs: $(DOCS)
	$(BIN)/mkdocs build --strict

check: lint types docs test

# What needs a GPU; goes on where it was stopped. Exit status of the script: 3 without a GPU.
gpu: $(TEST)
	$(BIN)/python experiments/research/gpu.py $(if $(GPU_OUT),--out $(GPU_OUT))

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find spr_or models tests -name __pycache__ -prune -exec rm -rf {} +
