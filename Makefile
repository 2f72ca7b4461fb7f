# make run                      the seven notebooks on BCCD (or synthetic smears), then a report
# make run PROFILE=smoke        smoke | quick | full
# make run DATA=smears          auto | bccd | smears | a folder of yours
# make test                     ruff, the unit tests, every notebook and the solutions
# make test-slow                the unit tests that take long: kills, clusters, whole trainings, drawn damage
# make fuzz                     damaged files and kills for an hour, new ones each time (ARGS="--minutes 5")
# make test-browser             the page (ssdlib app) in Chromium
# make bench                    speed: ours, a naive SSD300 and torchvision's
# make bench-training           time to accuracy of the same, drawn; hours (ARGS="--images 400" for less)
# make notebooks                run the notebooks in place and save their outputs, after a change
# make notebooks-ru             the notebooks in Russian, into build/notebooks-ru
# make address REPO=owner/name  the course's address on GitHub, into badges and first cells; REPO= takes it out
PYTHON  ?= python3
PROFILE ?= quick
DATA    ?= auto
RUN     ?=
ARGS    ?=

BIN       := .venv/bin
NOTEBOOKS := $(wildcard notebooks/[0-9][0-9]_*.ipynb notebooks/solutions/[0-9][0-9]_*.ipynb)

.PHONY: run setup test test-slow fuzz test-browser bench bench-training notebooks notebooks-ru address clean
.DEFAULT_GOAL := run

run: .venv/.stamp
	$(BIN)/python -m ssdlib run --profile "$(PROFILE)" --data "$(DATA)" $(if $(RUN),--run "$(RUN)") $(ARGS)

setup: .venv/.stamp

# Done once, and again whenever the project's requirements or the pins change.
.venv/.stamp: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: try make $(or $(MAKECMDGOALS),run) PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]' || \
		$(BIN)/python -c 'import platform, sys; sys.exit("Nothing was installed for Python %s of .venv; Python 3.11 to 3.14 can install all: if pip misses a version above, rm -r .venv and make $(or $(MAKECMDGOALS),run) PYTHON=python3.12" % platform.python_version())'
	$(BIN)/python .ci/setup_check.py --constraints .ci/constraints.txt
	$(BIN)/python -m compileall -q ssdlib
	@touch $@

test: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@export OMP_WAIT_POLICY=PASSIVE; log=$$(mktemp); trap 'kill $$notebooks 2>/dev/null; rm -f $$log' EXIT; \
	echo "$(words $(NOTEBOOKS)) notebooks, whose report comes last, beside the unit tests:"; \
	$(BIN)/python -m pytest --nbval $(NOTEBOOKS) >$$log 2>&1 & notebooks=$$!; \
	$(BIN)/python -m pytest -n 2 tests; units=$$?; \
	wait $$notebooks; saved=$$?; cat $$log; test $$units = 0 -a $$saved = 0

test-slow: .venv/.stamp
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 -m slow tests

fuzz: .venv/.stamp
	$(BIN)/python -m tests.fuzz $(ARGS)

# SCREENSHOTS=folder keeps what was seen; CHROMIUM=path names another browser.
test-browser: .venv/.stamp
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || { echo 'there is no Chromium: apt-get install chromium (Debian), or CHROMIUM=/path/to/chrome make test-browser' >&2; exit 1; }
	$(BIN)/python -m pytest -m browser tests/browser

bench: .venv/.stamp
	$(BIN)/python -m tests.benchmarks

bench-training: .venv/.stamp
	$(BIN)/python -m tests.benchmarks.training --data "$(DATA)" $(ARGS)

notebooks: .venv/.stamp
	$(BIN)/python .ci/refresh_notebooks.py $(NOTEBOOKS)

notebooks-ru: .venv/.stamp
	$(BIN)/python .ci/translate_notebooks.py ru build/notebooks-ru

# Without REPO, what pyproject.toml has: for a notebook that was added or replaced.
address:
	@$(PYTHON) .ci/address.py $(if $(filter undefined,$(origin REPO)),,"$(REPO)")

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find ssdlib tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
