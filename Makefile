# Two commands: `make demo` and `make test`. Each builds .venv first, with nothing but Python 3.11 to 3.13.
# A rule prints what it runs; none does anything you could not type.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: venv demo test check bench bench-offline bench-online clean
.DEFAULT_GOAL := demo

venv: $(VENV)/.made

$(VENV)/.made: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; install one, or say: make PYTHON=/path/to/python venv"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet --editable '.[analysis]' --group dev
	@touch $@

demo: venv
	$(RUN) -m optimizer demo

test: venv
	$(RUN) -m pytest -n auto -q

check: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

bench: venv
	$(RUN) -m tests.bench.bench $(ARGS)

bench-offline: venv
	$(RUN) -W ignore -m tests.bench.offline $(ARGS)

bench-online: venv
	$(RUN) -W ignore -m tests.bench.online $(ARGS)
	$(RUN) -W ignore -m tests.bench.online_speed

clean:
	rm -rf $(VENV) build dist results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
