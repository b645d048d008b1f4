# The control worker: batches, signs, publishes, calls back. No torch; the only place of the signing key.
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

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 unlearnd && install -d -o unlearnd /storage /storage/work /keys /epochs
WORKDIR /app
COPY docker/control.lock ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r control.lock
# From here on without an index: pip stops if the lock lacks something.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-index --find-links /dist 'unlearnd[kms,objects,otel,parquet]'
USER unlearnd
CMD ["unlearnd", "control", "--schedule", "/tmp/beat"]
