# `make` lists the commands. Each makes .venv and installs cmjax into it first, if need be.

VENV := .venv
# Named after $(PYTHON), so that pinning another interpreter rebuilds the environment.
STAMP := $(VENV)/installed-$(subst /,_,$(or $(PYTHON),newest))
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: help venv quickstart test slow soak peers doctest lint format types notebooks lock docs browser clean

help:
	@echo "make quickstart  train a toy model on this machine and draw its samples"
	@echo "make test        run the tests (not the slow ones)"
	@echo "make slow        run the slow tests: several processes, faults, long compilations"
	@echo "make soak        run the storms: minutes each, before a release"
	@echo "make peers       compare with other implementations (installs PyTorch: 5 GB)"
	@echo "make doctest     run the examples in docstrings"
	@echo "make lint        check format and style"
	@echo "make format      write what 'make lint' wants, where ruff can"
	@echo "make types       check the types"
	@echo "make notebooks   execute every notebook in place"
	@echo "make lock        pin the newest versions in launch/constraints.txt"
	@echo "make docs        build the documentation as a site, in site/"
	@echo "make browser     install Chromium with apt, as root: slow tests look at pages in it"
	@echo "make venv        only make $(VENV): the newest Python >= 3.11 that works"
	@echo "make clean       remove $(VENV) and caches"
	@echo "PYTHON=python3.11 make test   pin the interpreter"

venv: $(STAMP)

$(STAMP): setup.py
	@bash launch/venv.sh "$(VENV)" "$@" "$(PYTHON)"

# Huge pages: on a CPU a step takes its memory anew each time.
quickstart: $(STAMP)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(VENV)/bin/python launch/quickstart.py --workdir=runs/quickstart

# A file at a time per worker: what a file's tests share is made once. Compiling is most of the work.
test: $(STAMP)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

slow: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --prefer-binary -e '.[docs,emulators]'
	$(VENV)/bin/python -m pytest -m slow -n auto --dist loadfile

soak: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --prefer-binary -e '.[emulators]'
	$(VENV)/bin/python -m pytest -m soak -n auto --dist loadfile

# Without a single test pytest fails (5), so a peer that does not import is noticed here.
peers: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --prefer-binary -e '.[peers]'
	$(VENV)/bin/python -m pytest tests/peers

doctest: $(STAMP)
	$(VENV)/bin/python -m pytest --quiet --doctest-modules cmjax

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(STAMP)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

types: $(STAMP)
	$(VENV)/bin/pyright

notebooks: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet -e '.[notebooks]'
	$(VENV)/bin/python notebooks/copy_install_cell.py $(NOTEBOOKS)
	$(VENV)/bin/jupyter execute --inplace $(NOTEBOOKS)

# The versions of everything that a run computes with, for each Python from 3.11 on.
lock: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/python -m uv pip compile setup.py --extra tpu --extra cuda --extra stores --quiet \
	  --universal --python-version 3.11 --no-header --no-annotate --upgrade -o launch/constraints.txt

# Every warning is an error: a link, a heading or a name of the API that is not there.
docs: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --prefer-binary -e '.[docs]'
	$(VENV)/bin/python -m zensical build --strict --clean

# Without a browser, or root and apt to install one, the tests that need it are skipped.
browser:
	@command -v chromium > /dev/null || command -v chromium-browser > /dev/null \
	  || command -v google-chrome > /dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq > /dev/null \
	       && apt-get install -y -qq --no-install-recommends chromium > /dev/null; } \
	  || echo "No browser could be installed: the tests that need one are skipped." >&2

clean:
	rm -rf $(VENV) build site .cache *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
