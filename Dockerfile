# syntax=docker/dockerfile:1
# Two images: `prepare` for data preparation on CPUs (no torch), `train` for training on CUDA machines (the default).
#   docker build --target prepare --tag fnet-t5-prepare .
#   docker build --target train --tag fnet-t5 .
#   docker run --gpus all --shm-size 16g --volume /data:/data --volume /runs:/runs fnet-t5 train recipe.yaml --output /runs/first
# NOTE: no container engine runs where this is developed, so neither image was built by us: a linter reads this file, and tests
# run the commands of its steps in a root file system of their own.

# Bases are pinned by their full version; a digest (name:tag@sha256:…) pins them for good.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG PYTORCH_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3

# What training needs but torch, which its base brings. A change of pyproject.toml that is not of these leaves the layers alone.
FROM ${PYTHON_IMAGE} AS requirements
COPY pyproject.toml /tmp/pyproject.toml
RUN python -c "import tomllib; print(*[d for d in tomllib.load(open('/tmp/pyproject.toml', 'rb'))['project']['dependencies'] if not d.startswith('torch')], sep='\n')" > /tmp/train.txt

# The package alone: a change of code builds this again, and not the layers with dependencies.
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
# Into the image's own Python: KubeRay starts Ray from a login shell, which knows no PATH of ours.
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

# The base brings Python 3.12 and its own torch with CUDA and NCCL, which the install keeps. DS_BUILD_OPS=0: nothing is compiled.
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
