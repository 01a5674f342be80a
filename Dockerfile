# The image of moesr-bids. containers/README.md tells how to build and run it; containers/test_image.sh tests it.
#
# Debian with Python 3.11 or later; give it by its digest (name@sha256:...) to build from the same system again.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# cpu or cuda: for which the PyTorch is that goes into the image.
ARG VARIANT=cpu
# Address of PyTorch's own index of wheels for the variant; without it PyTorch comes from where pip looks by itself.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv

# What changes seldom comes first. PyTorch is most of the image.
WORKDIR /source
COPY constraints.txt ./
RUN python3 -m venv /opt/moesr \
 && /opt/moesr/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
 && /opt/moesr/bin/python -c "import sys, torch; cuda = torch.version.cuda is not None; \
sys.exit(cuda != ('$VARIANT' == 'cuda') and f'PyTorch {torch.__version__} is not of the variant $VARIANT: give the \
address of the wheels of PyTorch for it, --build-arg TORCH_INDEX=...')"
COPY pyproject.toml ./
RUN python3 -c "import tomllib; \
print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" > requirements.txt \
 && /opt/moesr/bin/pip install --constraint constraints.txt --requirement requirements.txt

COPY setup.py README.md LICENSE ./
COPY moesr_bids moesr_bids
COPY workflows workflows
RUN /opt/moesr/bin/pip install --no-deps . && /opt/moesr/bin/pip check

# The bill of materials. Its maker is not part of it.
RUN python3 -m venv /opt/sbom && /opt/sbom/bin/pip install cyclonedx-bom==7.5.0 && mkdir -p /opt/moesr/share \
 && /opt/moesr/bin/pip uninstall --yes pip \
 && /opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
    --output-file /opt/moesr/share/sbom.cdx.json /opt/moesr

# Byte code that needs no times, for an image that is read only; then all files get one time.
RUN rm -rf /opt/moesr/bin/__pycache__ && python3 -m compileall -q -j 0 -x 'py312_intrinsics' --invalidation-mode unchecked-hash /opt/moesr/lib
ARG SOURCE_DATE_EPOCH=0
RUN find /opt/moesr -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +

FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/*.log /var/log/apt
COPY --from=build /opt/moesr /opt/moesr
COPY --chmod=755 containers/start.sh /usr/local/bin/moesr-bids
COPY --chmod=755 containers/start.sh /usr/local/bin/moesr
COPY --chmod=755 containers/start.sh /usr/local/bin/bids-validator-deno
COPY LICENSE /usr/share/doc/moesr-bids/LICENSE
ARG VARIANT=cpu
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="moesr-bids" \
      org.opencontainers.image.description="BIDS App: super-resolution of clinical brain MRI (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 NO_ET=1 TEMPLATEFLOW_AUTOUPDATE=off \
    MOESR_BIDS_CONTAINER_TAG="moesr-bids:${VERSION}-${VARIANT}"
# Where users bind their folders; engines that cannot make them need them here.
RUN mkdir /data /out /work
ENTRYPOINT ["moesr-bids"]
