# Z-Image Studio in a container. docs/deployment.md says how to run it; compose.yaml does so.
FROM python:3.11-slim

# The CPU build of torch. For CUDA 12.6: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN useradd --uid 10001 --no-create-home --home-dir /data studio && install -d -o studio -m 0700 /data
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} -r requirements.txt
COPY app.py LICENSE ./
COPY zimage_studio ./zimage_studio

USER 10001
ENV ZIMAGE_HOST=0.0.0.0 \
    ZIMAGE_PORT=7860 \
    ZIMAGE_DATA=/data \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/readyz', timeout=4)"]
ENTRYPOINT ["python", "app.py"]
