# syntax=docker/dockerfile:1
# CPU:   docker build --build-arg TORCH_INDEX=<address of PyTorch's CPU packages> -t onnxspect .
# CUDA:  docker build -t onnxspect:cuda .          run it with --gpus all
# Run:   docker run --rm --network none -v "$PWD:/work" onnxspect scan model.onnx --data clean.npz
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
# PyTorch's packages on PyPI bring CUDA with them, some 3 GB; its own index for the CPU does not (pytorch.org, "Get Started").
ARG TORCH_INDEX=""
COPY constraints.txt /tmp/constraints.txt
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir -c /tmp/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && python -m pip install --no-cache-dir -c /tmp/constraints.txt /wheels/*.whl \
    && rm /tmp/constraints.txt \
    && useradd --create-home --uid 10001 onnxspect
# The locked-in child needs Landlock or user namespaces of the host, which unprivileged containers may have or not:
# `onnxspect convert --require-sandbox` says so.
USER 10001
WORKDIR /work
ENTRYPOINT ["onnxspect"]
CMD ["--help"]
