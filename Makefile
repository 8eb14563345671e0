# `make demo` and `make test` are all that a fresh machine needs: Python >= 3.10 with venv.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format docs notebooks peers bench

demo: $(INSTALLED)
	$(VENV)/bin/mandorla demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

# A warning, such as of a dead link, is an error.
docs: $(INSTALLED)
	$(VENV)/bin/python -m sphinx -q -W --keep-going -n docs build/docs

# Run every cell again; the pictures are those of runs/demo.
notebooks: $(INSTALLED)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[notebooks]"
	test -e runs/demo/report.html || $(VENV)/bin/mandorla demo
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" python docs/notebook_pages.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Ours and peers in turns: ratios mean something on a machine that does nothing else.
bench: $(INSTALLED) peers
	$(VENV)/bin/python benchmarks/speed.py --write

# The peers of benchmarks/peers.py need other builds of torch than ours: about 6 GB of their own.
peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -r benchmarks/peers/requirements.txt
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Mandorla needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@
