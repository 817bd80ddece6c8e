# The image that tune/clusters/kuberay.yaml runs: docker build -t REGISTRY/mmfa-study:0.1.0 .
FROM python:3.11-slim-bookworm

# KubeRay's probes ask with wget whether Ray lives.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

# The dependencies are a layer of their own: another commit of the code does not install them again.
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], *project['optional-dependencies']['cluster'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY mmfa mmfa
COPY studies studies
COPY tune tune
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps . && rm -rf build

# Nothing here is secret: the token, PGPASSWORD and the keys of S3 come from the pod's environment.
RUN useradd --create-home --uid 1000 ray
USER 1000
WORKDIR /home/ray
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility RAY_USAGE_STATS_ENABLED=0
