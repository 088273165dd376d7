# make demo   edits inputs/img.png and restores its background
# make test   runs the tests
# make lint   runs the linter, the formatter's check and the type checker
# make gallery  makes the pictures of docs/gallery.md
# make studio   opens the page on which masks are painted
# make studio-test  runs all tests of the studio, the long ones and those in a browser too; installs Chromium where apt can
# All make .venv and install what is missing. PYTHON=python3.12 chooses another Python than python3.
PYTHON ?= python3
BIN := .venv/bin
PROMPT := a cookie

.PHONY: demo test lint gallery studio studio-test install dev
demo: install
	$(BIN)/bld-edit --prompt "$(PROMPT)" --init_image inputs/img.png --mask inputs/mask.png
	$(BIN)/bld-reconstruct --init_image inputs/img.png --mask inputs/mask.png --selected_indices 0 1

test: dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

gallery: dev
	sh docs/gallery.sh $(BIN)/python

studio: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[studio]"
	$(BIN)/bld-studio

studio-test: dev
	command -v chromium chromium-browser google-chrome || apt-get install -y chromium || sudo apt-get install -y chromium
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_studio*.py

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
