# FNet-T5 on CUDA machines. The base brings Python 3.12 and its own torch with CUDA and NCCL, which the install keeps.
#   docker build -t fnet-t5 .
#   docker run --gpus all --shm-size 16g -v /data:/data -v /runs:/runs fnet-t5 train recipe.yaml --output /runs/first
# NOTE: not built by the project's tests, which run where no container engine does.
FROM nvcr.io/nvidia/pytorch:26.06-py3

WORKDIR /opt/fnet-t5

# Dependencies before code, so that a change of code does not install them again. DS_BUILD_OPS=0: nothing is compiled.
COPY pyproject.toml README.md LICENSE ./
ENV DS_BUILD_OPS=0 PIP_CONSTRAINT="" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -c "import tomllib; print('\n'.join(d for d in tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'] if not d.startswith('torch')))" > /tmp/requirements.txt \
 && pip install --requirement /tmp/requirements.txt

COPY data_prep data_prep
COPY models models
COPY pipeline pipeline
COPY launch launch
COPY configs configs
RUN pip install --no-deps .

RUN useradd --create-home --uid 1000 fnet
USER fnet
WORKDIR /home/fnet
ENTRYPOINT ["fnet-t5"]
CMD ["--help"]
