# lbguard for a load balancer pod (`run`) or a proxy pod (`probe`).
#
#   buildah bud --build-arg VERSION=0.1.0 --tag lbguard:0.1.0 .        (docker build takes the same)
#
# Python packages are those of requirements.lock, checked by hash. Debian packages are those of the base image's
# release: name the base by digest for a build that can be repeated. Without a network: mount a directory of wheels
# and give --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=DIRECTORY.
ARG BASE=debian:12-slim

FROM ${BASE} AS runtime
# Debian keeps one version of a package in a release, and its security updates are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnftables1 python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*

FROM runtime AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libcap2-bin python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
COPY requirements.lock ./
RUN python3 -m venv pip \
 && python3 -m venv --without-pip /opt/lbguard \
 && pip/bin/pip --python /opt/lbguard/bin/python3 install --no-cache-dir --no-compile --require-hashes \
        --only-binary :all: --requirement requirements.lock
COPY lbguard ./lbguard
COPY deploy/image/lbguard ./launcher
# Byte code is made at build time, and never compared with its source: the file system is read-only at run time. The
# interpreter is a copy, because file capabilities belong to a file, and Debian's own python3 must not have them. They
# lack the effective bit: see lbguard/kernel/process.py.
RUN packages=$(/opt/lbguard/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
 && mv lbguard "$packages/" \
 && /opt/lbguard/bin/python3 -m compileall -q --invalidation-mode unchecked-hash "$packages" \
 && interpreter=$(readlink -f /opt/lbguard/bin/python3) \
 && rm -rf /opt/lbguard/bin/* \
 && install -m 0755 "$interpreter" /opt/lbguard/bin/python3 \
 && setcap cap_net_admin,cap_net_raw+p /opt/lbguard/bin/python3 \
 && install -m 0755 launcher /opt/lbguard/bin/lbguard

FROM runtime
# The user of Meridio's load balancer; only this user may open its shared memory.
ARG UID=10002
ARG GID=10002
ARG VERSION
ARG REVISION
COPY --from=build /opt/lbguard /opt/lbguard
COPY docs/licences.md /usr/share/doc/lbguard/licences.md
RUN ln -s /opt/lbguard/bin/lbguard /usr/local/bin/lbguard \
 && install -d -o "${UID}" -g "${GID}" -m 0750 /run/lbguard
LABEL org.opencontainers.image.title="lbguard" \
      org.opencontainers.image.description="Keeps load-balanced connections alive while a service mesh heals its links" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-only" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER ${UID}:${GID}
ENTRYPOINT ["/opt/lbguard/bin/lbguard"]
CMD ["run"]
