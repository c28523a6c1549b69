# syntax=docker/dockerfile:1
# Two images: `prepare` for data preparation on CPUs (no torch), `train` for training on CUDA machines (the default).
#   docker build --target prepare --tag fnet-t5-prepare .
#   docker build --target train --tag fnet-t5 .
#   docker run --gpus all --shm-size 16g --volume /data:/data --volume /runs:/runs fnet-t5 train recipe.yaml --output /runs/first
# NOTE: neither image has been built, because no container engine was available during development. A linter checks this file,
# and tests run the commands of its steps in a separate root file system.

# Base images are pinned by their full version. Use a digest (name:tag@sha256:…) to pin their exact content.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG PYTORCH_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3

# Dependencies of training without torch, which is part of its base image. Other changes of pyproject.toml keep later layers cached.
FROM ${PYTHON_IMAGE} AS requirements
COPY pyproject.toml /tmp/pyproject.toml
RUN python -c "import tomllib; print(*[d for d in tomllib.load(open('/tmp/pyproject.toml', 'rb'))['project']['dependencies'] if not d.startswith('torch')], sep='\n')" > /tmp/train.txt

# Only the package: a change of code rebuilds this stage, but not the layers with dependencies.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY data_prep data_prep
COPY models models
COPY pipeline pipeline
COPY launch launch
COPY configs configs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS prepare
# Install into the image's Python, not a virtual environment: KubeRay starts Ray from a login shell, which resets PATH.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --non-unique --uid 1000 fnet
COPY requirements.lock /tmp/requirements.lock
COPY docker/prepare.txt /tmp/prepare.txt
RUN pip install --requirement /tmp/prepare.txt --constraint /tmp/requirements.lock
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-deps /tmp/wheels/*.whl
USER 1000
WORKDIR /home/fnet
ENTRYPOINT ["fnet-t5"]
CMD ["prepare", "--help"]

# The base image has Python 3.12 and its own torch with CUDA and NCCL, which pip keeps. DS_BUILD_OPS=0: nothing is compiled.
FROM ${PYTORCH_IMAGE} AS train
ENV DS_BUILD_OPS=0 PIP_CONSTRAINT="" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --non-unique --uid 1000 fnet
COPY --from=requirements /tmp/train.txt /tmp/train.txt
RUN pip install --requirement /tmp/train.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-deps /tmp/wheels/*.whl
USER 1000
WORKDIR /home/fnet
ENTRYPOINT ["fnet-t5"]
CMD ["--help"]
