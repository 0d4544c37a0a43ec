# The gateway as a container, a drop-in replacement for Metabase's own runner: port 5000, AUTH_TOKEN, ENABLE_INTERNAL_S3.
#
#   docker build -t transform-gateway .
#   docker run -d -p 5001:5000 -e AUTH_TOKEN=... transform-gateway
#
# BASE is any Debian image. If it has no Python >= 3.11 in its PATH, Debian's is installed.
# PANDAS=3 installs pandas 3 in place of 2.3.
# EXTRA_PACKAGES are additional packages for transforms, for instance "scikit-learn statsmodels".
# Two optional secrets configure a private package index: pip_conf is mounted as /etc/pip.conf during the build, ca_bundle
# as /run/secrets/ca_bundle.

ARG BASE=python:3.12-slim-bookworm

# -- common to both stages ---------------------------------------------------------------------------------------------
FROM ${BASE} AS base
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
# The version is checked, not only the name: an image may have an old Python.
RUN apt-get update -qq \
 && python="$(python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || echo python3)" \
 && apt-get install -y -qq --no-install-recommends tini ca-certificates $python >/dev/null \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log

# -- packages ----------------------------------------------------------------------------------------------------------
FROM base AS packages
RUN apt-get update -qq \
 && venv="$(python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv)" \
 && apt-get install -y -qq --no-install-recommends binutils $venv >/dev/null
RUN python3 -m venv /build && python3 -m venv /opt/transform-gateway
WORKDIR /source
COPY requirements-pandas3.lock deploy/requirements-image.lock deploy/requirements-build.lock deploy/
ARG PANDAS=2
RUN case "$PANDAS" in \
      2) ;; \
      3) sed -i '/^pandas==/,/[^\\]$/d' deploy/requirements-image.lock \
          && cat deploy/requirements-pandas3.lock >>deploy/requirements-image.lock ;; \
      *) echo "PANDAS is 2 or 3, not \"$PANDAS\"" >&2; exit 2 ;; \
    esac
ENV PIP_QUIET=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    /opt/transform-gateway/bin/pip install --no-deps --require-hashes -r deploy/requirements-image.lock \
 && /build/bin/pip install --no-deps --require-hashes -r deploy/requirements-build.lock

# The gateway's own pins take precedence: a package that needs other versions fails the build.
ARG EXTRA_PACKAGES=""
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    if [ -n "$EXTRA_PACKAGES" ]; then \
        /opt/transform-gateway/bin/pip freeze >/tmp/pins && \
        /opt/transform-gateway/bin/pip install --constraint /tmp/pins $EXTRA_PACKAGES; \
    fi

COPY deploy/slim.sh deploy/
RUN sh deploy/slim.sh /opt/transform-gateway

COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY kernel_spec kernel_spec
COPY transform_shim transform_shim
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/transform-gateway/bin/pip install --no-deps --no-index /wheels/*.whl \
 && /opt/transform-gateway/bin/pip uninstall -y setuptools pip

# -- the image ---------------------------------------------------------------------------------------------------------
FROM base
LABEL org.opencontainers.image.title="Transform Gateway" \
      org.opencontainers.image.description="An open runner for Metabase's Python transforms" \
      org.opencontainers.image.licenses="Apache-2.0"
# Ids that no Debian package uses. Each kernel gets a uid from 58000 to 58999; only the first has a name here
# (gateway/process/privileges.py, kernel_spec/launcher/workspaces.py)
RUN groupadd --gid 57999 gateway && groupadd --gid 58000 pyexec \
 && useradd --uid 57999 --gid gateway --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
 && useradd --uid 58000 --gid pyexec --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pyexec
# What must outlive the container: accepted jobs, computed results, the history. Every --user may make the directory
# below it, and only its maker may remove it. The socket paths in it must stay short.
RUN install -d -m 1777 /var/lib/transform-gateway
VOLUME /var/lib/transform-gateway
COPY --from=packages /opt/transform-gateway /opt/transform-gateway
ENV PATH=/opt/transform-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    container=oci \
    HOST=0.0.0.0 \
    PORT=5000 \
    STATE_DIR=/var/lib/transform-gateway/state \
    INTERNAL_S3_HOST=0.0.0.0 \
    INTERNAL_S3_ALLOW_TEST_KEYS=true
EXPOSE 5000 4566
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["transform-gateway", "status"]
# Only the launcher and its supervisor stay root: the launcher starts each kernel as a user of its own. The process that
# listens becomes the user `gateway` before it answers a request. Any other --user works as well, with tier C.
ENTRYPOINT ["tini", "--", "transform-gateway"]
