# make demo: the whole way once, on a room that the program makes itself.   make test: the whole suite.
# make fuzz: 20,000 random files for each reader of files; FUZZ=2000 for fewer.
# make faults: kill -9 at random moments, 20 times each of five jobs.
# make soak: two clients of a viewer, 1,000 random actions, ten minutes of training.
# make docs: the documentation as a site, in site/.
# Everything lives in .venv; PYTHON chooses the interpreter (3.10 to 3.12).

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
DEMO_ARGS ?=
FUZZ ?= 20000

.PHONY: demo test fuzz faults soak docs install install-test check clean

demo: .venv/installed
	$(BIN)/jacobinerf demo $(DEMO_ARGS)

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache
	$(MAKE) --no-print-directory docs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10

fuzz: .venv/installed-test
	JACOBINERF_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n 2 --timeout 0 tests/test_fuzz.py

faults: .venv/installed-test
	$(BIN)/python tests/faults.py

soak: .venv/installed-test
	$(BIN)/python tests/soak.py

# The variable silences what MkDocs Material says about its own end of life at every start.
docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

install: .venv/installed
install-test: .venv/installed-test

.venv/bin/uv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found: install one, or say make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: .venv/bin/uv pyproject.toml constraints.txt scripts/system_libraries.sh
	sh scripts/system_libraries.sh
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --override overrides.txt -e .
	$(BIN)/python -m jacobinerf_ns.compat.ffmpeg $(BIN)
	@touch $@

.venv/installed-test: .venv/installed
	sh scripts/system_libraries.sh tests
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --override overrides.txt -e '.[test,docs]'
	@touch $@

clean:
	rm -rf .venv demo_output outputs build site *.egg-info .pytest_cache .ruff_cache
