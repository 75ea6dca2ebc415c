# ContinuityBridge. `make run` on a fresh machine is all there is to it; `make help` lists the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help

BRIDGE := .venv/bin/bridge
# Another interpreter: make setup PYTHON=/path/to/python3.12
export PYTHON
# Arguments for pytest: make test ARGS='tests/unit -k mapper'
ARGS ?=

.PHONY: help setup setup-dev run stop status logs clean distclean test bench mutation chaos lint format docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with the locked packages and the command bridge
	@scripts/setup

setup-dev: ## the same with what tests and linters need
	@scripts/setup --dev

run: setup ## start the platform, let two orders travel through it, leave it running
	@$(BRIDGE) demo

stop: $(BRIDGE) ## stop the platform
	@$(BRIDGE) down

status: $(BRIDGE) ## show the platform's processes
	@$(BRIDGE) status

logs: $(BRIDGE) ## show the end of each log
	@$(BRIDGE) logs

$(BRIDGE):
	@echo "nothing is set up yet: make run" >&2; exit 1

clean: ## stop the platform and remove its state in .bridge, databases included
	@scripts/clean

distclean: clean ## the same, and .venv
	@rm -rf .venv

test: setup-dev ## run the whole test suite, with state, databases and ports of its own
	@scripts/test $(ARGS)

bench: setup-dev ## take every figure and print it beside what is to be reached (make bench ARGS=compile)
	@.venv/bin/python -m benchmarks $(ARGS)

mutation: setup-dev ## change the code that guards something, and count the changes that no test notices (make mutation ARGS=vault)
	@.venv/bin/python tests/mutation $(ARGS)

chaos: setup-dev ## kill processes at random under load, and prove that no message was lost (make chaos ARGS='--count 2000')
	@.venv/bin/python tests/chaos $(ARGS)

lint: setup-dev ## ruff, mypy --strict, import-linter, bandit, secrets in files, known vulnerabilities
	@scripts/lint

format: setup-dev ## let ruff rewrite the code
	@.venv/bin/ruff check -q --fix-only . && .venv/bin/ruff format .

docs: setup ## rewrite what is made from code: reference pages, airflow.cfg.template
	@scripts/docs
