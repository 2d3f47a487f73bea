# `make demo` and `make test` set up all they need. `make help` lists the rest.
SEEDS ?= 10000
MINUTES ?= 20
PYTHON := .venv/bin/python
# Without root, tests that make network namespaces run inside a user namespace.
ifneq ($(shell id -u),0)
SANDBOX := unshare --user --map-root-user
endif

.PHONY: help setup demo check test lint format sim bench soak docs site lowest sbom picture proto lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## make .venv ready with the locked versions, and install missing Debian packages
	@scripts/setup $(if $(filter setup,$(MAKECMDGOALS)),--say)

demo: setup ## play eight scenarios with real packets, today's behaviour beside lbguard's (about five minutes)
	@.venv/bin/lbguard demo

check: setup lint ## lint and the quick unit tests, for daily work
	@$(PYTHON) -m pytest -q -n 2 -m 'not slow' --hypothesis-profile=quick tests/unit

# Tests of image and chart fetch what they need. Tests in namespaces leave the machine's network, and threads that gRPC
# started before stay in it, so that other tests must not share their processes: three runs.
test: setup ## run every test
	@$(PYTHON) -m pytest tests/deploy
	@$(SANDBOX) $(PYTHON) -m pytest -n 2 --dist loadfile tests/unit tests/sim
	@$(SANDBOX) $(PYTHON) -m pytest -n 2 --dist loadfile tests/netns tests/bench

lint: setup ## ruff, mypy --strict and the import contracts
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup ## rewrite the code in the house format
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

sim: setup ## a long campaign of the simulator: make sim SEEDS=10000
	@$(PYTHON) -m tests.sim --seeds $(SEEDS)

bench: setup ## measure, print a table and write out/bench.json
	@mkdir -p out
	@$(SANDBOX) $(PYTHON) -m tests.bench --output out/bench.json

soak: setup ## the service under links that flap and reporters that chatter: make soak MINUTES=20
	@mkdir -p out
	@$(SANDBOX) $(PYTHON) -m tests.bench.soak --minutes $(MINUTES) --output out/soak.json

docs: setup ## write the generated parts of docs/, of the dashboards and of the Helm chart
	@$(PYTHON) scripts/generate-docs
	@$(PYTHON) scripts/generate-dashboards
	@$(PYTHON) scripts/generate-helm
	@$(PYTHON) scripts/generate-man
	@$(PYTHON) scripts/generate-licences

site: setup ## build docs/ as a site into out/site, strictly
	@scripts/build-site out/site

# Generated pages are those of the locked versions.
lowest: setup ## the quick unit tests with the lowest versions that pyproject.toml allows
	@scripts/make-lowest out/lowest
	@out/lowest/bin/python -m pytest -q -n 2 -m 'not slow' --hypothesis-profile=quick \
		--override-ini filterwarnings=ignore --deselect tests/unit/test_docs.py tests/unit

sbom: setup ## write a bill of materials of the Python packages to out/sbom.json
	@mkdir -p out
	@$(PYTHON) scripts/generate-licences --sbom out/sbom.json

picture: setup ## play the scenarios of the README's table, and write its picture
	@.venv/bin/lbguard demo --scenario lb-link --scenario target-link --scenario newcomers --scenario removed \
		--scenario added --distributor nftables --json --svg docs/demo.svg

proto: setup ## write the generated protobuf code
	@$(PYTHON) scripts/generate-proto

lock: setup ## lock the newest allowed versions
	@$(PYTHON) -m pip install --quiet uv
	@.venv/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --upgrade --quiet --output-file requirements-dev.lock
	@.venv/bin/uv pip compile pyproject.toml --extra spiffe --extra otel --extra kubernetes --universal --python-version 3.11 \
		--generate-hashes --no-header --quiet --constraint requirements-dev.lock --output-file requirements.lock
	@.venv/bin/uv pip compile --group docs --universal --python-version 3.11 \
		--generate-hashes --no-header --upgrade --quiet --output-file requirements-docs.lock

clean: ## remove what the other targets made
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .hypothesis
