# One image for the Prefect server, its services and the workers: all run the versions of constraints.txt.
# Targets: cpu (the default), gpu (PyPI's torch with its CUDA libraries, several GB).
FROM python:3.11.15-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

FROM base AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
WORKDIR /src
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt ./
# The dependencies alone, so that a change of the code does not install them again.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['server'], sep='\n')" > requirements.txt

FROM build AS wheel
COPY README.md LICENSE ./
COPY storage_schemas storage_schemas
COPY pipelines pipelines
COPY uwm uwm
COPY flows flows
RUN pip wheel --no-deps --wheel-dir /wheel .

FROM build AS build-cpu
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)" \
    && pip install -c constraints.txt -r requirements.txt
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-deps /wheel/*.whl \
    && python -m compileall -q /opt/venv/lib

FROM build AS build-gpu
RUN pip install -c constraints.txt -r requirements.txt
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-deps /wheel/*.whl \
    && python -m compileall -q /opt/venv/lib

FROM base AS runtime
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/uwm uwm
ENV PATH=/opt/venv/bin:$PATH HOME=/var/lib/uwm
WORKDIR /var/lib/uwm
USER 10001:10001
# Server, services and worker are healthy in different ways: docker-compose.yml says how for each.
HEALTHCHECK NONE
CMD ["uwm", "--help"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/venv /opt/venv

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
