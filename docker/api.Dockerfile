# The HTTP API (and migrations): no torch.
FROM python:3.12-slim
RUN useradd --create-home --uid 10001 unlearnd && install -d -o unlearnd /storage /keys
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY worker ./worker
COPY migrations ./migrations
RUN pip install --no-cache-dir '.[hub,kms,otel,parquet]'
USER unlearnd
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
CMD ["unlearnd", "api", "--host", "0.0.0.0", "--port", "8000"]
