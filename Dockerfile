# syntax=docker/dockerfile:1
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS builder

# The cmodel's kernels are C++; the compiler stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ ninja-build \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY device device
COPY model_plugins model_plugins
COPY sophserve sophserve
RUN pip wheel . --no-deps --wheel-dir dist

# Wheels and Debian packages of the chip's software; see the folder's README.md.
ARG TPUV7=deploy/tpuv7
COPY ${TPUV7}/ /tpuv7/

# An index with torch for CPUs, which has no CUDA libraries, and which torch: torch_tpu loads with one version only.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch
RUN python -m venv /opt/sophserve \
    && find /tpuv7 -name '*.whl' -exec /opt/sophserve/bin/pip install --no-cache-dir --no-deps {} + \
    && /opt/sophserve/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" "${TORCH}" dist/*.whl

# emulator or card: what the device tpuv7 is set up for; nothing where it is empty. See docs/deployment.md.
ARG TPUV7_TARGET=
# hadolint ignore=DL3008,SC2046
RUN mkdir -p /setup/.cache \
    && if [ "${TPUV7_TARGET}" = card ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends gcc-riscv64-linux-gnu libc6-dev-riscv64-cross \
            $(find /tpuv7 -name '*.deb'); \
    fi \
    && if [ -n "${TPUV7_TARGET}" ]; then \
        HOME=/setup /opt/sophserve/bin/sophserve tpuv7 setup --target "${TPUV7_TARGET}"; \
    fi

FROM python:${PYTHON}-slim

RUN --mount=type=bind,from=builder,source=/tpuv7,target=/tpuv7 \
    if [ -n "$(find /tpuv7 -name '*.deb')" ]; then \
        apt-get update \
        && find /tpuv7 -name '*.deb' -exec apt-get install -y --no-install-recommends {} + \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --uid 1000 --create-home sophserve \
    && install --directory --owner sophserve --group sophserve /data
COPY --from=builder /opt/sophserve /opt/sophserve
COPY --from=builder --chown=sophserve /setup/.cache /home/sophserve/.cache

# OMP_NUM_THREADS is left alone: sophserve takes the physical cores that the container's CPU quota pays for.
ENV PATH=/opt/sophserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/.huggingface \
    XDG_STATE_HOME=/data/.state

USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Loading may take minutes. Where the CPU is busy, starting Python takes its time as well.
HEALTHCHECK --interval=15s --timeout=15s --start-period=10m --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as Server; s = Server('127.0.0.1', 8000, timeout=5); s.request('GET', '/health'); raise SystemExit(s.getresponse().status != 200)"]
ENTRYPOINT ["sophserve"]
CMD ["--model", "demo", "--host", "0.0.0.0"]
