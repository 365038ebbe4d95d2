# CPU image. Build it with `docker build --tag ulskip .`, then:
#   docker run --rm --volume ulskip-results:/ulskip/results ulskip                  the demo
#   docker run --rm --volume ulskip-results:/ulskip/results ulskip plan ratio=3     any other command
# To use a folder instead of a named volume: --user "$(id -u)" --volume "$PWD/results:/ulskip/results"
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY ulskip_cli ulskip_cli
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# The decode kernel is compiled for the machine's processor on first use.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# The dependencies have layers of their own, which a change of the code leaves in the build cache.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /dependencies
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint requirements.txt torch \
    && pip install --no-cache-dir --constraint requirements.lock --requirement requirements.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl

# Every user may write here, so that --user works; the kernel is cached below HOME.
RUN useradd --no-create-home --home-dir /ulskip ulskip && mkdir --mode 1777 /ulskip /ulskip/results
ENV HOME=/ulskip
WORKDIR /ulskip
USER ulskip
VOLUME /ulskip/results
ENTRYPOINT ["ulskip"]
CMD ["run", "task=wmt", "ratio=2.0"]
