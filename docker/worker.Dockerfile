# The compute worker. CPU by default; for CUDA build with
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY docker/build.lock ./
RUN pip install --no-cache-dir --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY worker ./worker
COPY migrations ./migrations
ARG VERSION=
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# Debian 13: its setpriv has Landlock, which confines the compute child.
FROM python:3.12-slim-trixie
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home --uid 10001 unlearnd && install -d -o unlearnd /storage /storage/work /keys /epochs
WORKDIR /app
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch>=2.6'
COPY docker/worker.lock ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r worker.lock
# From here on without an index: pip stops if the lock lacks something.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-index --find-links /dist 'unlearnd[engine,gguf,kms,objects,otel]'
USER unlearnd
CMD ["unlearnd", "worker"]
