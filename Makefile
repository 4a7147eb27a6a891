# make demo   three photographs through the real service, into demo/contact-sheet.png
# make test   every test that this machine allows
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The torch release that the project is tested with; any of the range in pyproject.toml works.
TORCH ?= torch==2.13.0
# Half of the suite waits for processes, disks and machines: two workers on two cores halve it.
PYTEST_FLAGS ?= -n 2 --dist loadgroup

.PHONY: demo test install clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rmbgd needs Python 3.11 or newer; name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv"; exit 1; }

# systemd-python is compiled against libsystemd's headers; the service runs without it where systemd does not start it.
$(VENV)/.installed: pyproject.toml Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,demo,heif]'
	@if pkg-config --exists libsystemd 2>/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[systemd]'; \
	else echo "libsystemd headers not found: going on without systemd-python (apt-get install libsystemd-dev pkg-config)"; fi
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python tools/demo.py demo

test: install
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

clean:
	rm -rf $(VENV) demo build *.egg-info
