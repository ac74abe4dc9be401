# One image for every process of the fleet; the command says which. `--target simulator` adds the simulated payment
# provider, which has no business in production.
FROM python:3.13-slim AS build
WORKDIR /app
# Built where it will lie: a virtual environment does not move. Only wheels: nothing is compiled, here or later.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements/api.txt requirements/worker.txt requirements/
RUN pip install -q --require-hashes --only-binary :all: -r requirements/api.txt \
    && pip install -q --require-hashes --only-binary :all: -r requirements/worker.txt
COPY pyproject.toml README.md LICENSE celeryconfig.py ./
COPY shared shared
COPY workers workers
COPY api api
# In place, so that Celery finds our commands, as in a checkout.
RUN pip install -q --no-deps -e . && pip uninstall -q -y pip && python -m compileall -q shared workers api celeryconfig.py

FROM python:3.13-slim AS fleet
# tini reaps and passes signals on, haproxy is the gateway's.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy tini >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin waybill \
    && install -d -o waybill -g waybill /var/lib/waybill
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY alembic.ini gunicorn.conf.py ./
COPY deploy/couriers.json deploy/haproxy.cfg deploy/unavailable.http deploy/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp VAR_DIR=/var/lib/waybill API_HOST=0.0.0.0 LOG_FORMAT=json
USER waybill
ENTRYPOINT ["tini", "--"]
CMD ["gunicorn", "-c", "gunicorn.conf.py", "api.wsgi:app"]

FROM fleet AS simulator
COPY simulators simulators
USER root
# A volume takes over the owner of the folder that it covers.
RUN install -d -o waybill -g waybill /data
USER waybill

# Last, so that it is what `docker build` makes.
FROM fleet AS production
