# The commands of this repository; `make help` lists them. Longer logic is in tools/.

BIN := .venv/bin
COVERED := vuserd/*,protocol/*,memory/*
MINIMUM := 95
# The tests whose coverage counts. A tracer would slow the others down to half (tests/covering.py), and they reach
# next to nothing that these do not: neither examples by the hundred, nor most of those that run daemons.
COVERING := $(addprefix tests/,unit faults integrations mutants \
    $(addprefix attacks/test_,socket_folders.py descriptors.py) \
    $(addprefix e2e/test_,archive.py check_service.py get_tree.py reload.py whole_trees.py))
# Tests wait as often as they work, so there are more processes of them than processors.
WORKERS ?= $(shell expr 2 '*' "$$(nproc)")
NAME ?= files
SUITE ?= trixie
FUZZ_TIME ?= 60
# The suite starts thousands of interpreters: what one has compiled, the others are to find.
unexport PYTHONDONTWRITEBYTECODE
export PYTHON PREFIX DESTDIR SYSCONFDIR UNITDIR USERUNITDIR SYSUSERSDIR TMPFILESDIR VIRTIOFSD

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-boot run test test-oldest test-python lint check site format fix backends bench \
    bench-quick bench-get bench-inside bench-rpc fuzz soak mutants fresh-debian deb release install rollback uninstall clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# Two stamps: what runs needs little, so a fresh machine sees the demo soon; tests and checks need more.
$(BIN)/.runtime: pyproject.toml constraints.txt tools/setup-venv
	@tools/setup-venv && touch $@

$(BIN)/.dev: pyproject.toml constraints.txt tools/setup-venv
	@tools/setup-venv dev && touch $@ $(BIN)/.runtime

setup: $(BIN)/.dev ## make .venv with vuserd and the development tools (PYTHON=... chooses)
	@:

demo: $(BIN)/.runtime ## serve DIR, list it, fetch a file, compare it, stop (default: /usr/bin)
	@backend=$$(tools/find-virtiofsd) && \
	    $(BIN)/python examples/demo.py --backend "$$backend" $(if $(DIR),"$(DIR)")

demo-boot: export RIG_COMMAND = $(or $(CMD),cat /proc/version)
demo-boot: $(BIN)/.runtime ## boot a rig from DIR and run CMD there (default: a small tree, cat /proc/version)
	@backend=$$(tools/find-virtiofsd) && rig=$$(tools/find-rig) && \
	    $(BIN)/python examples/demo_boot.py "$$rig" --backend "$$backend" \
	    --command "$$RIG_COMMAND" $(if $(DIR),--directory "$(DIR)")

run: $(BIN)/.runtime ## serve DIR in the foreground as the export NAME (default: files)
	@[ -n "$(DIR)" ] || { echo "usage: make run DIR=/some/folder [NAME=files]" >&2; exit 2; }
	@backend=$$(tools/find-virtiofsd) && \
	    exec $(BIN)/vuserd serve --backend "$$backend" --export "$(NAME)=$(DIR)"

test: setup backends ## run the whole suite, many files at a time (ARGS=... for pytest, NETWORK=no, AGAIN=yes: again what failed)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10 \
	    $(if $(filter no,$(NETWORK)),-m "not network") $(ARGS) || { [ "$$?$(AGAIN)" = 1yes ] || exit; \
	    echo "make test: what failed is tried again, alone: a test that passes now is to be mended, too" >&2; \
	    $(BIN)/python -m pytest --last-failed --exitfirst; }

test-oldest: backends ## run tests with the oldest dependencies allowed (ARGS=... for pytest, instead of a choice)
	@tools/test-oldest $(ARGS)

test-python: ## run unit and property tests with Python VERSION: 3.13, 3.14 (of a Debian; needs root), 3.12 (of PATH)
	@tests/system/on-python "$(VERSION)" $(ARGS)

lint: setup ## check the format, types, import contracts, units, the package and the site: all but the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@tools/check-units
	@tools/check-package
	@tools/site

# What lint says comes behind the tests, which leave a processor idle now and then; if it fails, at once, too.
check: setup ## all that CI runs: make lint, beside it make test with coverage
	@{ $(MAKE) --no-print-directory lint >$(BIN)/.lint 2>&1 || { cat $(BIN)/.lint >&2; false; }; } & \
	    failed=; \
	    $(MAKE) --no-print-directory test ARGS="--cov --cov-report= --covering='$(COVERING)'" || failed=tests; \
	    wait $$! || failed="lint $$failed"; \
	    cat $(BIN)/.lint; [ -z "$$failed" ] || { echo "make check: failed: $$failed" >&2; exit 1; }
	@$(BIN)/coverage report --include='$(COVERED)' --fail-under=$(MINIMUM) --precision=1 >$(BIN)/.coverage-report || \
	    { cat $(BIN)/.coverage-report; exit 1; }
	@echo "branch coverage of $(COVERED) (at least $(MINIMUM) %):" \
	    "$$(sed -n 's/^TOTAL .* //p' $(BIN)/.coverage-report)"

site: setup ## make the documentation a site, in .cache/site
	@tools/site

format: setup ## format the code
	$(BIN)/ruff format .

fix: setup ## format, and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

backends: ## see to it that the tests find both virtiofsd, the Rust and the C one
	@tools/test-backends

bench: $(BIN)/.runtime backends ## compare vuserd with others, write benchmarks/results (ten minutes)
	@tools/bench-peers
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(BIN)/.runtime backends ## the same with less work, in two minutes
	@tools/bench-peers
	$(BIN)/python -m benchmarks --quick $(ARGS)

bench-get: $(BIN)/.runtime ## time vuserctl get beside cp: 512 MiB in memory, 1 GiB onto the same disk
	@backends=$$(tools/test-backends | sed -n 's/^.* virtiofsd: \//--backend \//p') && \
	    $(BIN)/python benchmarks/get.py $$backends $(ARGS)

fuzz: setup ## run each fuzz target for FUZZ_TIME seconds (default: 60; ARGS=paths: that one)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_TIME) $(ARGS)

soak: setup backends ## run the long forms of the storms, and print their figures (three hours)
	tests/soak/run $(ARGS)

mutants: setup ## change the codec and the virtqueue, see that the tests notice (15 minutes; ARGS=a module)
	@tools/mutants $(ARGS)

bench-inside: $(BIN)/.runtime ## show what a call costs the daemon, without the RPC (ARGS=--profile)
	@backend=$$(tools/find-virtiofsd) && \
	    $(BIN)/python -m benchmarks.inside --backend "$$backend" $(ARGS)

bench-rpc: $(BIN)/.runtime ## show what the RPC of a call costs the daemon, without a backend (ARGS=--profile)
	$(BIN)/python -m benchmarks.rpc $(ARGS)

fresh-debian: ## run make demo on a new, bare Debian SUITE (default: trixie; needs root)
	tests/system/fresh-debian $(SUITE) $(ARGS)

deb: ## build the Debian package into dist, for Debian 13, and have lintian check it (needs root)
	@tools/deb

release: setup ## make dist/vuserd-VERSION from the commit tagged vVERSION, built twice (ARGS=--try: from any commit)
	@tools/release $(ARGS)

install: ## install, or upgrade at once, under PREFIX (default: /usr/local; DESTDIR=...)
	@tools/install

rollback: ## go back to what was installed under PREFIX before
	@tools/install rollback

uninstall: ## remove what install put there, but not the configuration
	@tools/install uninstall

clean: ## remove all that these commands made here
	rm -rf .venv .cache dist .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
