# make demo   edits inputs/img.png and restores its background
# make test   runs the tests
# make lint   runs the linter, the formatter's check and the type checker
# make gallery  makes the pictures of docs/gallery.md
# All make .venv and install what is missing. PYTHON=python3.12 chooses another Python than python3.
PYTHON ?= python3
BIN := .venv/bin
PROMPT := a white donut

.PHONY: demo test lint gallery install dev
demo: install
	$(BIN)/bld-edit --prompt "$(PROMPT)" --init_image inputs/img.png --mask inputs/donut_mask.png
	$(BIN)/bld-reconstruct --init_image inputs/img.png --mask inputs/donut_mask.png --selected_indices 0 1

test: dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

gallery: dev
	sh docs/gallery.sh $(BIN)/python

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed
dev: .venv/installed-dev

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
