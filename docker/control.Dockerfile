# The control worker: batches, signs, publishes, calls back. No torch; the only place of the signing key.
FROM python:3.12-slim
RUN useradd --create-home --uid 10001 unlearnd && install -d -o unlearnd /storage /keys
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY worker ./worker
COPY migrations ./migrations
RUN pip install --no-cache-dir '.[kms,otel,parquet]'
USER unlearnd
CMD ["unlearnd", "control", "--schedule", "/tmp/beat"]
