# Everything a user or a developer does, by name; `make help` explains each. Settings are environment variables
# (AUTH_TOKEN, HOST, PORT, STATE_DIR, SLOTS, ...) and may stand on make's command line: `make run PORT=5002`.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules
.SUFFIXES:

# Started by root, each kernel runs as a user of its own, which must be able to read the interpreter, the installed
# packages and its directory below STATE_DIR. Where such users cannot reach this checkout (a clone below /root, a
# restrictive umask) those three live apart from it, the project is installed as a copy, and `make` installs it again
# after a change; everywhere else they lie here and the installation is editable.
ifeq ($(shell id -u),0)
ifneq ($(shell setpriv --reuid 65534 --regid 65534 --clear-groups test -r '$(CURDIR)/gateway/__init__.py' 2>/dev/null && echo reachable),reachable)
APART := /var/lib/transform-gateway-$(shell pwd | cksum | cut -d ' ' -f 1)
export PYTHONSAFEPATH := 1
endif
endif

VENV := $(if $(APART),$(APART)/venv,$(CURDIR)/.venv)
STATE_DIR ?= $(if $(APART),$(APART)/state,$(CURDIR)/.state)
export STATE_DIR
PY := $(VENV)/bin/python
GATEWAY := $(VENV)/bin/transform-gateway
DAEMON := $(PY) -P -m gateway.daemon
SOURCES := $(if $(APART),$(shell find gateway kernel_spec transform_shim -type f -not -name '*.pyc'))
KERNEL_FILES := $(wildcard kernel_spec/resources/transform/*)
LINES ?= 100
ARGS ?=

# what looks at a gateway must not start to install one
INSTALLED = @test -x "$(PY)" || { echo "nothing is installed here yet: make run"; exit 3; }

# A usable Python is 3.11 or newer, can make virtual environments and, for root, can be read by other users.
define PROBE
import os, sys
ok = sys.version_info >= (3, 11)
import ensurepip, venv
if ok and os.getuid() == 0 and sys.argv[1:] == ["shared"]:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    open(os.__file__).close()
    ok = os.access(os.path.realpath(sys.executable), os.X_OK)
sys.exit(0 if ok else 1)
endef
export PROBE
CANDIDATES := python3 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3
FIND_PYTHON = for mode in shared any; do for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
	if "$$candidate" -c "$$PROBE" $$mode >/dev/null 2>&1; then found=$$candidate; break 2; fi; done; done

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /\1\t/' | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# -- install ----------------------------------------------------------------------------------------------------------

.PHONY: dev-setup
dev-setup: $(VENV)/.project ## make .venv with the locked dependencies, the project and the kernel `transform`

$(VENV)/.locked: requirements.lock
	@umask 022; found=; $(FIND_PYTHON); \
	if [ -z "$$found" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "no usable Python found: installing Debian's python3-venv"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null && $(FIND_PYTHON); \
	fi; \
	if [ -z "$$found" ]; then \
		echo "no Python >= 3.11 with the venv module found (Debian: apt install python3-venv); name one with PYTHON=..." >&2; exit 1; \
	fi; \
	if [ "$$mode" = any ] && [ "$$(id -u)" = 0 ]; then \
		echo "warning: other users cannot read $$found, so kernels cannot run as users of their own; name another with PYTHON=..." >&2; \
	fi; \
	echo "making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv "$(VENV)" && \
	"$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps --use-pep517 --require-hashes -r requirements.lock
	@$(if $(APART),test "$(VENV)" = "$(CURDIR)/.venv" || { rm -rf .venv; ln -s "$(VENV)" .venv; })
	@touch $@

$(VENV)/.project: $(VENV)/.locked pyproject.toml $(KERNEL_FILES) $(SOURCES)
	@umask 022; "$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(if $(APART),--force-reinstall .,--editable .)
	@touch $@

.PHONY: rebuild
rebuild: ## make .venv again from nothing
	@rm -rf "$(VENV)"
	@$(MAKE) dev-setup

COMPILE := $(VENV)/lock/bin/pip-compile
COMPILE_OPTIONS := --quiet --upgrade --allow-unsafe --generate-hashes --strip-extras --no-annotate --no-header \
	--no-emit-find-links --no-emit-index-url --no-emit-trusted-host
define EXTRAS
import tomllib
extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']
print(*('--extra=' + name for name in extras if name != 'notebooks'))
endef
export EXTRAS

.PHONY: lock
lock: $(VENV)/.project ## write the lock files again, with the newest versions
	@"$(PY)" -m venv "$(VENV)/lock" && "$(VENV)/lock/bin/pip" install --quiet --disable-pip-version-check pip-tools
	@"$(COMPILE)" $(COMPILE_OPTIONS) $$("$(PY)" -c "$$EXTRAS") --output-file requirements.new pyproject.toml
	@{ head -n 1 requirements.lock; cat requirements.new; } > requirements.tmp && mv requirements.tmp requirements.lock
	@# JupyterLab is a hundred megabytes that only `make notebook` wants; what both have, both have in one version
	@"$(COMPILE)" $(COMPILE_OPTIONS) --extra notebooks --constraint requirements.new --output-file notebooks.new pyproject.toml
	@{ head -n 1 requirements.lock; cat notebooks.new; } > requirements.tmp && mv requirements.tmp requirements-notebooks.lock
	@rm -f requirements.new notebooks.new
	@# the image's parts of it; a package that is named unsafe is left out, and told of in comments that pip trips over
	@for part in "image --extra frames --extra s3 --extra otel --unsafe-package debugpy --unsafe-package jedi --unsafe-package parso" \
		"build --only-build-deps --build-deps-for wheel"; do \
		set -- $$part; name=deploy/requirements-$$1.lock; shift; \
		"$(COMPILE)" $(filter-out --upgrade --allow-unsafe,$(COMPILE_OPTIONS)) --constraint requirements.lock --output-file requirements.new "$$@" pyproject.toml && \
		{ head -n 1 "$$name"; sed '/^#/d; /^$$/d' requirements.new; } > requirements.tmp && mv requirements.tmp "$$name" && rm requirements.new || exit 1; \
	done
	@rm -rf "$(VENV)/lock"

# -- the gateway ------------------------------------------------------------------------------------------------------

.PHONY: run
run: $(VENV)/.project ## start the gateway in the background and run a transform on real data through it
	@$(DAEMON) start
	@"$(GATEWAY)" smoke $(ARGS)
	@$(DAEMON) next

.PHONY: start
start: $(VENV)/.project ## start the gateway in the background, without the smoke test
	@$(DAEMON) start

.PHONY: status
status: ## say whether the gateway runs, how it is and what is on
	$(INSTALLED)
	@$(DAEMON) status

.PHONY: logs
logs: ## print the end of the gateway's log (LINES=100; FOLLOW=1 goes on)
	$(INSTALLED)
	@$(DAEMON) logs --lines=$(LINES) $(if $(FOLLOW),--follow)

.PHONY: stop
stop: ## let running jobs end, then stop the gateway
	$(INSTALLED)
	@$(DAEMON) stop

.PHONY: restart
restart: $(VENV)/.project ## stop, then start
	@$(DAEMON) stop
	@$(DAEMON) start

.PHONY: smoke-test
smoke-test: $(VENV)/.project ## run a transform on the flights table through the running gateway
	@"$(GATEWAY)" smoke $(ARGS)

.PHONY: console
console: $(VENV)/.project ## attach a console to a kernel of the running gateway (ARGS=ID: to that of a failed job)
	@"$(GATEWAY)" console $(ARGS)

$(VENV)/.notebooks: requirements-notebooks.lock $(VENV)/.project
	@echo "installing JupyterLab"
	@"$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps --use-pep517 --require-hashes -r requirements-notebooks.lock
	@touch $@

.PHONY: notebook
notebook: $(VENV)/.notebooks ## open JupyterLab on notebooks/ with the kernel `transform` (ARGS="--no-browser")
	@"$(VENV)/bin/jupyter" lab --notebook-dir notebooks --MappingKernelManager.default_kernel_name=transform \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

.PHONY: screenshot
screenshot: $(VENV)/.notebooks ## take docs/jupyterlab.png: the first notebook in a real browser (needs chromium and chromium-driver)
	@"$(PY)" -m venv "$(VENV)/screenshot" && \
		"$(VENV)/screenshot/bin/pip" install --quiet --disable-pip-version-check 'selenium>=4.25,<5'
	@"$(VENV)/screenshot/bin/python" tests/notebooks/screenshot.py --jupyter "$(VENV)/bin/jupyter"
	@rm -rf "$(VENV)/screenshot"

.PHONY: doctor
doctor: $(VENV)/.project ## show each layer of the sandbox: on, degraded or off, and why
	@"$(GATEWAY)" doctor $(ARGS)

# -- the container ----------------------------------------------------------------------------------------------------

# ENGINE may be a command with options; without one, it is whichever of docker and podman answers.
IMAGE ?= transform-gateway
CONTAINER ?= transform-gateway
BASE ?= python:3.12-slim-bookworm
EXTRA_PACKAGES ?=
BUILD_OPTIONS ?=
PUBLISH ?= --publish 127.0.0.1:$(or $(PORT),5001):5000 --publish 127.0.0.1:4566:4566
# the least with which each kernel gets a user of its own: SECURITY.md says what each is for
CAPABILITIES ?= CHOWN DAC_OVERRIDE KILL SETGID SETUID
RUN_OPTIONS ?=
FIND_ENGINE = engine='$(ENGINE)'; \
	for each in docker podman; do if [ -z "$$engine" ] && $$each info >/dev/null 2>&1; then engine=$$each; fi; done; \
	if [ -z "$$engine" ]; then echo "no container engine answers here: install docker or podman, or name one with ENGINE=..." >&2; exit 3; fi

.PHONY: docker-build
docker-build: ## build the image (BASE=..., EXTRA_PACKAGES="...", IMAGE=name)
	@$(FIND_ENGINE); case $$engine in *podman*) format="--format docker";; *) format=;; esac; \
	$$engine build $$format --build-arg BASE='$(BASE)' --build-arg EXTRA_PACKAGES='$(EXTRA_PACKAGES)' $(BUILD_OPTIONS) --tag '$(IMAGE)' .

.PHONY: docker-run
docker-run: ## start a container of it on http://localhost:5001 (AUTH_TOKEN=...; ENABLE_INTERNAL_S3=true)
	@$(FIND_ENGINE); if [ -z "$$AUTH_TOKEN" ]; then echo "everybody who reaches it could run code: set AUTH_TOKEN" >&2; exit 2; fi; \
	$$engine run --detach --name '$(CONTAINER)' --cap-drop ALL $(CAPABILITIES:%=--cap-add %) --security-opt no-new-privileges \
		$(PUBLISH) --env AUTH_TOKEN --env ENABLE_INTERNAL_S3 $(RUN_OPTIONS) '$(IMAGE)' >/dev/null || exit 1; \
	for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
		if said=$$($$engine exec '$(CONTAINER)' transform-gateway status 2>/dev/null); then echo "$$said"; exit 0; fi; sleep 1; \
	done; \
	echo "it did not get healthy within 20 s; its log:" >&2; $$engine logs '$(CONTAINER)' >&2; exit 1

.PHONY: docker-logs
docker-logs: ## print the end of the container's log (LINES=100; FOLLOW=1 goes on)
	@$(FIND_ENGINE); $$engine logs --tail $(LINES) $(if $(FOLLOW),--follow) '$(CONTAINER)'

.PHONY: docker-stop
docker-stop: ## let running jobs end, then stop and remove the container
	@$(FIND_ENGINE); $$engine stop -t 40 '$(CONTAINER)' >/dev/null && $$engine rm '$(CONTAINER)' >/dev/null && echo "stopped"

.PHONY: docker-test
docker-test: $(VENV)/.project ## build an image of its own, try it in all ways it may run, and remove everything
	@env -u PYTHONSAFEPATH "$(PY)" -m tests.image $(ARGS)

# -- checks -----------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.project ## run the tests (ARGS="-k name" chooses)
	@# the sandbox's tests fork the process they run in, so they need one that has not imported half the world; a choice
	@# of tests may leave one of the two runs without any (exit status 5)
	@"$(PY)" -m pytest tests/kernel_spec/sandbox $(ARGS) || { status=$$?; [ $$status = 5 ] && [ -n "$(ARGS)" ] || exit $$status; }
	@"$(PY)" -m pytest --ignore=tests/kernel_spec/sandbox $(ARGS) || { status=$$?; [ $$status = 5 ] && [ -n "$(ARGS)" ] || exit $$status; }

.PHONY: check
check: $(VENV)/.project ## ruff, formatting and mypy --strict
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .
	@"$(PY)" -m mypy

.PHONY: bench
bench: $(VENV)/.project ## compare with the subprocess design on this machine (ARGS="--quick" for a short run)
	@env -u PYTHONSAFEPATH "$(PY)" -m tests.benchmarks $(ARGS)

.PHONY: docs
docs: $(VENV)/.project ## write the generated tables of README.md and docs/ again
	@env -u PYTHONSAFEPATH "$(PY)" -m tests.docs --write

.PHONY: clean
clean: ## stop the gateway and remove everything that make and the gateway made
	@if [ -x "$(PY)" ]; then $(DAEMON) stop; fi
	@rm -rf .venv .state $(if $(APART),"$(APART)") build dist bench-results requirements.new requirements.tmp \
		notebooks.new .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
