# `make` or `make help` lists what there is. Needs Python 3.11 to 3.13 with pip; PYTHON=... names one.

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Further arguments for pytest: make test-unit ARGS="-k status -x"
ARGS ?=
# Exported: deploy/bootstrap.sh reads it when it makes the virtual environment.
PYTHON ?=
export PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo run up down bench chaos compose-test fuzz openapi \
	test test-unit test-eager test-integration test-e2e test-contract test-rabbitmq4 lint format requirements clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp per role, so that only the first call, and the first after new requirements, installs.
$(VENV)/.stamp-%: requirements/%.txt
	@deploy/bootstrap.sh $*

demo: $(VENV)/.stamp-embedded ## Send orders through the embedded stack and watch them (no server needed)
	@$(BIN)/python -m stacks.demo

run: $(VENV)/.stamp-embedded ## Leave the embedded stack up, its API on port 8000
	@$(BIN)/python -m stacks.embedded

up: $(VENV)/.stamp-embedded ## Start the fleet on local RabbitMQ, Redis and PostgreSQL, data under var/
	@$(BIN)/python -m stacks.up up

down: $(VENV)/.stamp-embedded ## Stop what `make up` started
	@$(BIN)/python -m stacks.up down

bench: $(VENV)/.stamp-dev ## Measure what lists take on a million orders
	@$(BIN)/python -m bench.lists $(ARGS)

chaos: $(VENV)/.stamp-dev ## Kill everything again and again under 1,000 orders, then check the money (at most 8 minutes)
	@$(BIN)/python -m stacks.chaos $(ARGS)

compose-test: $(VENV)/.stamp-embedded ## Run the fleet in containers, break it, and check the money (about 10 minutes)
	@$(BIN)/python -m stacks.compose_run $(ARGS)

fuzz: $(VENV)/.stamp-dev ## Let the API's description attack the API with more than 5,000 requests (about 5 minutes)
	@$(BIN)/python -m stacks.fuzz $(ARGS)

openapi: $(VENV)/.stamp-dev ## Write docs/openapi.json anew; a change that breaks clients wants BREAKING=1
	@$(BIN)/python -m api.contract $(if $(filter 1,$(BREAKING)),--breaking)

# Two at a time, a file each: tests mostly wait for the processes they start.
test: lint ## Lint, then run every test, real servers included
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-unit test-eager test-integration test-e2e test-contract: test-%: $(VENV)/.stamp-dev
	$(PYTEST) tests/$* $(ARGS)

# The targets above share one rule; these lines only describe them.
test-unit: ## Tests without I/O
test-eager: ## The whole saga in one process, tasks called eagerly
test-integration: ## Against real RabbitMQ, Redis and PostgreSQL
test-e2e: ## HTTP in, COMPLETED out, on both stacks
test-contract: ## Every published message version is still understood

test-rabbitmq4: $(VENV)/.stamp-dev ## The integration tests against RabbitMQ 4, in a container
	TEST_RABBITMQ_IMAGE=rabbitmq:4-management $(PYTEST) tests/integration $(ARGS)

lint: $(VENV)/.stamp-dev ## Check style, format, types and imports
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy --strict
	$(BIN)/lint-imports

format: $(VENV)/.stamp-dev ## Put the code into the house format
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

# Pins stay where they are unless asked: make requirements UPGRADE=--upgrade
# dev first: the other roles are cut from its pins, so that every role runs what was tested.
UPGRADE ?=
COMPILE = $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make requirements" $(UPGRADE)
requirements: $(VENV)/.stamp-dev ## Pin requirements/*.in anew, for all supported Pythons
	$(BIN)/python -m pip install -qq uv
	$(COMPILE) requirements/dev.in -o requirements/dev.txt
	for role in embedded api worker; do \
		$(COMPILE) -c requirements/dev.txt requirements/$$role.in -o requirements/$$role.txt || exit 1; \
	done

clean: ## Remove the virtual environment and every cache; data under var/ stays
	rm -rf $(VENV) .venv.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
