# make demo   sets everything up and traces a real `fossil new a`
# make test   sets everything up and runs the tests
# make test-all  the same with 59 more builds of SQLite for the resolver, half a minute each
# make fuzz   feeds the readers of files with mutations for a minute each (FUZZ_SECONDS=600 FUZZ="elf macho")
# make lint   ruff, the formatter and mypy
# make bench  prints the benchmark tables
# make catalogue  rebuilds btf/, the layouts of SQLite's structs; make catalogue-check rebuilds three

SHELL := /bin/bash
PYTHON := /usr/bin/python3
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# What a run needs, and what the tests need beside it.
DEMO_PACKAGES := python3-bpfcc python3-venv fossil
ALL_BUILDS_PACKAGES := clang lld gcc-aarch64-linux-gnu libc6-dev-arm64-cross
TEST_PACKAGES := gcc libc6-dev libsqlite3-dev sqlite3 binutils procps bpftool dwarves

.PHONY: demo test test-all fuzz lint format bench catalogue catalogue-check clean setup setup-test setup-bench setup-catalogue

# $(call debian,packages): installs those that are missing; silent and quick when none is.
define debian
	@missing=; for p in $(1); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

setup:
	$(call debian,$(DEMO_PACKAGES))
	@$(MAKE) -s .venv/installed

setup-test: setup
	$(call debian,$(TEST_PACKAGES) $(if $(shell command -v npm),,nodejs npm libnode-dev))
	@$(MAKE) -s .venv/installed-dev

# Debian's python3 and its site-packages, because python3-bpfcc belongs to it.
.venv/installed: pyproject.toml
	@[ -x $(BIN)/python ] || { echo "making .venv"; $(PYTHON) -m venv --system-site-packages .venv; }
	@echo "installing sqltrace and its libraries into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . 2>&1 | { grep -v '^WARNING: Location' || true; }
	@$(BIN)/sqltrace --version >/dev/null
	@touch $@

.venv/installed-dev: pyproject.toml .venv/installed
	@echo "installing the test tools into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 2>&1 | { grep -v '^WARNING: Location' || true; }
	@$(BIN)/pytest --version >/dev/null
	@touch $@

demo: setup
	@set -e; root=$$PWD; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; rm -f demo.jsonl; cd "$$folder"; \
	echo; echo '$$ sqltrace run -o demo.jsonl -- fossil new a'; \
	HOME="$$folder" USER=$${USER:-$$(id -un)} "$$root/$(BIN)/sqltrace" run -o "$$root/demo.jsonl" -- fossil new a; \
	echo; echo '$$ sqltrace show --limit 6 demo.jsonl'; \
	"$$root/$(BIN)/sqltrace" show --limit 6 "$$root/demo.jsonl"; \
	echo "the log: $$root/demo.jsonl"

test: setup-test
	@$(BIN)/python -m pytest

test-all: setup-test
	$(call debian,$(ALL_BUILDS_PACKAGES))
	@SQLTRACE_ALL_BUILDS=1 $(BIN)/python -m pytest

FUZZ_SECONDS := 60
fuzz: setup-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@nice -n 19 $(BIN)/python -m tests.fuzz $(FUZZ_SECONDS) $(FUZZ)

lint: setup-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup-bench
	@$(BIN)/python -m benchmarks

# What others charge for less; a tool that does not work here is skipped with a sentence.
setup-bench: setup-test
	$(call debian,bpftrace ltrace gdb strace)

# SQLite's struct layouts (btf/): all releases anew, four minutes with downloads, two without; ...
catalogue: setup-catalogue
	@nice $(BIN)/python -m sqltrace.btf.generate

# ... or three of them, compared with what is stored.
catalogue-check: setup-catalogue
	@nice $(BIN)/python -m sqltrace.btf.generate --check 3.19.3 3.38.2 3.54.1

setup-catalogue: setup
	$(call debian,gcc libc6-dev dwarves make tcl $(if $(shell command -v npm),,nodejs npm))

clean:
	rm -rf .venv build dist demo.jsonl *.egg-info
