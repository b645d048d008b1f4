# The compute worker. CPU by default; for CUDA build with
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home --uid 10001 unlearnd && install -d -o unlearnd /storage /keys
WORKDIR /app
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch>=2.4'
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY worker ./worker
COPY migrations ./migrations
RUN pip install --no-cache-dir '.[engine,kms,otel]'
USER unlearnd
CMD ["unlearnd", "worker"]
