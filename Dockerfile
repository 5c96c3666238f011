# The worker as an image, for BuildKit (Docker 23 or newer):
#
#   docker build -t NAME .                              Dia and the codec inside
#   docker build --build-arg BAKE_WEIGHTS=0 -t NAME .   the codec inside; Dia is a cached model
#
# Layers go from what seldom changes to what often does: packages, weights, voices, code. A change of
# code moves the last two, a few hundred kilobytes.

ARG BAKE_WEIGHTS=1

# CUDA's `base`, not its `runtime`: torch's wheels bring the CUDA libraries that torch runs on, and
# those of `runtime` would lie unused beside them. `base` has what the wheels have not: the variables
# by which the container runtime mounts the driver, and refuses one that is too old for CUDA 13.0,
# which is the CUDA of torch 2.13.0 in the package index.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS python
# A C compiler in an image that serves, because Triton has no other way: when a process launches its
# first kernel it compiles `triton/backends/nvidia/driver.c`, against Python.h and libcuda.so.1, and
# libcuda.so.1 is there only once a driver is mounted. It takes a second. Without a compiler the
# engine works all the same, on plain operations, and says so in its log; but it is slower.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev libpython3-dev python3 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM python AS packages
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
WORKDIR /build
COPY builder/requirements.txt builder/constraints-cuda.txt builder/
# The pin of torch is that of every machine; the package index has its CUDA build for Linux, with
# Triton and NVIDIA's libraries.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check \
        --requirement builder/requirements.txt --constraint builder/constraints-cuda.txt

# What fetching needs, and no more: other code may change without a new download.
FROM packages AS fetching
COPY worker/__init__.py worker/errors.py worker/tensors.py worker/
COPY worker/codec worker/codec
COPY builder/__init__.py builder/connection.py builder/convert.py builder/download.py \
    builder/fetch_weights.py builder/pins.py builder/

FROM fetching AS codec
RUN --mount=type=cache,id=dia-downloads,target=/downloads,sharing=locked \
    python -m builder.fetch_weights codec --downloads /downloads

FROM fetching AS dia
ARG BAKE_WEIGHTS
# Also where nothing is baked there must be a folder to copy.
RUN --mount=type=cache,id=dia-downloads,target=/downloads,sharing=locked \
    mkdir -p models \
    && case "$BAKE_WEIGHTS" in \
        1) python -m builder.fetch_weights dia --downloads /downloads ;; \
        0) echo "Dia is left out" ;; \
        *) echo "BAKE_WEIGHTS is '$BAKE_WEIGHTS'; it must be 0 or 1" >&2; exit 1 ;; \
    esac

FROM codec AS voices
COPY worker/limits.py worker/
COPY worker/audio worker/audio
COPY worker/voices worker/voices
COPY builder/build_voices.py builder/
COPY voices voices
RUN python -m builder.build_voices voices models/dac_44khz

FROM python AS worker
RUN groupadd --gid 10001 worker && useradd --create-home --uid 10001 --gid 10001 worker
WORKDIR /app
COPY --from=packages /opt/venv /opt/venv
COPY --from=dia /build/models models
COPY --from=codec /build/models models
# The library is the user's, so that voices can be added while the worker runs.
COPY --from=voices --chown=10001:10001 /build/voices voices
# The repository that is baked, or that the endpoint must have as its cached model. A start downloads
# nothing: where weights are missing it ends at once and says where it looked. The SDK's own log level
# would write every job's input into the log.
ENV DIA_MODEL_REPO_ID=nari-labs/Dia-1.6B-0626 \
    HF_HUB_OFFLINE=1 \
    RUNPOD_LOG_LEVEL=INFO
COPY LICENSE handler.py test_input.json ./
COPY worker worker
# The user may not write here: compiled once, instead of at every start.
RUN python -m compileall -q --invalidation-mode unchecked-hash handler.py worker
USER 10001
CMD ["python", "-u", "handler.py"]
