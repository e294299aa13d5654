# Shoal as a container: `docker build -t shoal .`. Most of its 6 GB are PyTorch's default wheel; no GPU is used.
FROM python:3.11-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
COPY requirements.lock /src/
RUN /opt/venv/bin/pip install -r /src/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY engine /src/engine
COPY connectors /src/connectors
RUN /opt/venv/bin/pip install --no-deps /src

FROM python:3.11-slim-bookworm
# hnswlib and dgl are linked against OpenMP.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /var/lib/shoal --create-home shoal
COPY --from=build /opt/venv /opt/venv
# The store and what numba compiled live in the volume, and so outlive the container.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DGLBACKEND=pytorch \
    NUMBA_CACHE_DIR=/var/lib/shoal/numba \
    SHOAL_STORE__PATH=/var/lib/shoal/store
USER shoal
WORKDIR /var/lib/shoal
VOLUME /var/lib/shoal
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["shoal"]
CMD ["serve", "-c", "/etc/shoal/shoal.toml"]
