# make demo      three photographs through the real service, into demo/contact-sheet.png
# make check     linters, types and unit tests, in less than a minute: on every save
# make test      everything that this machine allows, campaigns at a tenth
# make deb       the Debian package, into build/deb; docs/install.md says what it needs
# make campaign  kills, GPU failures, power cuts, uploads and a soak by the thousand, for hours; goes on where it was interrupted
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The torch release that the project is tested with; any of the range in pyproject.toml works.
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Half of the suite waits for processes, disks and machines: two workers on two cores halve it.
PYTEST_FLAGS ?= -n 2 --dist loadgroup
CAMPAIGN_PART ?= 1/10
UNIT := not (slow or integration or campaign or system or gpu)
CAMPAIGNS := kill failover power_cut clients wholeness soak steady

.PHONY: demo check lint test campaign $(CAMPAIGNS) packages deb install clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rmbgd needs Python 3.11 or newer; name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv"; exit 1; }

$(VENV)/.demo: pyproject.toml Makefile | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[test,demo,heif]'
	@touch $@

install: $(VENV)/.test

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py demo

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -q $(PYTEST_FLAGS) --hypothesis-profile dev -m "$(UNIT)"

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --hypothesis-profile ci --campaign-part $(CAMPAIGN_PART)

# Each writes its counts to build/campaign/NAME.json and, started again, does what is missing there.
campaign: $(CAMPAIGNS) packages

$(CAMPAIGNS): $(VENV)/.test
	$(BIN)/python -m tools.$@ --out build/campaign/$@.json

# What the documents say of installing, with the real apt-get, pip and dpkg, in containers.
packages: $(VENV)/.test
	$(BIN)/python -m pytest -q tests/system/test_packages.py

deb: $(BIN)/python
	$(BIN)/python -m tools.deb --torch "$(TORCH)+cpu"

clean:
	rm -rf $(VENV) demo build *.egg-info
