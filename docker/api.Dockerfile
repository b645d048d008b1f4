# The HTTP API (and migrations): no torch.
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
RUN useradd --create-home --uid 10001 unlearnd && install -d -o unlearnd /storage /storage/work /keys /epochs /home/unlearnd/.cache
WORKDIR /app
COPY docker/api.lock ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r api.lock
# From here on without an index: pip stops if the lock lacks something.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --no-index --find-links /dist 'unlearnd[hub,kms,objects,otel,parquet,pdf]'
USER unlearnd
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
CMD ["unlearnd", "api", "--host", "0.0.0.0", "--port", "8000"]
