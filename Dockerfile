# The gateway in a container, to stand where Metabase's own runner stands: port 5000, AUTH_TOKEN, ENABLE_INTERNAL_S3.
#
#   docker build -t transform-gateway .
#   docker run -d -p 5001:5000 -e AUTH_TOKEN=... transform-gateway
#
# BASE is any image of Debian, with a Python of at least 3.11 in its PATH or without one: Debian's is installed then.
# EXTRA_PACKAGES are further packages for transforms, for instance "scikit-learn statsmodels".
# Two secrets are for places with a package index of their own, and may be absent: pip_conf becomes /etc/pip.conf during
# the build, ca_bundle lies at /run/secrets/ca_bundle.

ARG BASE=python:3.12-slim-bookworm

# -- what both stages need ---------------------------------------------------------------------------------------------
FROM ${BASE} AS base
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
# an interpreter is asked for, not looked for by name: an image may carry an old one
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
COPY deploy/requirements-image.lock deploy/requirements-build.lock deploy/
ENV PIP_QUIET=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    /opt/transform-gateway/bin/pip install --no-deps --require-hashes -r deploy/requirements-image.lock \
 && /build/bin/pip install --no-deps --require-hashes -r deploy/requirements-build.lock

# the gateway's own pins hold: a package that needs other versions ends the build
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
# ids that no package of Debian takes. Each kernel takes one from 58000 to 58999, of which only the first has a name here
# (gateway/privileges.py, kernel_spec/seats.py)
RUN groupadd --gid 57999 gateway && groupadd --gid 58000 pyexec \
 && useradd --uid 57999 --gid gateway --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
 && useradd --uid 58000 --gid pyexec --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pyexec
COPY --from=packages /opt/transform-gateway /opt/transform-gateway
ENV PATH=/opt/transform-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=5000 \
    STATE_DIR=/tmp/transform-gateway \
    INTERNAL_S3_HOST=0.0.0.0 \
    INTERNAL_S3_ALLOW_TEST_KEYS=true
EXPOSE 5000 4566
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["transform-gateway", "status"]
# root here is for the launcher alone: it starts each kernel as a user of its own. The process that listens becomes the
# user `gateway` before it answers anyone. Any other --user works as well, with tier C.
ENTRYPOINT ["tini", "--", "transform-gateway"]
