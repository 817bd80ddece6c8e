# `make study` and `make test` do all the set-up themselves: a virtual environment in .venv, pinned by constraints.txt.

PYTHON ?= python3
STUDY ?= lambdas
OUT ?= mmfa-studies
PORT ?= 5000
JOBS ?= 2
BIN := .venv/bin

.PHONY: study test test-all lint ui recorded bench setup clean

study: .venv/.installed ## run a study (STUDY=lambdas) on the embedded pair; run again to continue
	@$(BIN)/python tune/run_study.py --study $(STUDY) --out $(OUT)

# One thread a process: OpenMP's threads wait by spinning, and where JOBS times two of them share two cores a training of
# two seconds took two minutes.
test: .venv/.tested lint ## everything but the nightly tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not nightly"

test-all: .venv/.tested lint
	$(BIN)/python -m pytest

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: recorded .venv/.installed ## open MLflow on what is there
	@echo 'MLflow on $(OUT): http://127.0.0.1:$(PORT) (Ctrl-C ends it)'
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --workers 2 \
		--backend-store-uri sqlite:///$(abspath $(OUT))/mlflow.db --host 127.0.0.1 --port $(PORT)

recorded:
	@test -s '$(OUT)/mlflow.db' || { echo 'make ui shows what a study has recorded, but there is no $(OUT)/mlflow.db:' \
		'run make study first, or name the folder of a study with OUT=...'; exit 1; }

bench: .venv/.installed ## every benchmark as one table: ours, the peer or the limit, the bar, met or not (about an hour; RECORD=1 keeps the results)
	@$(BIN)/python benchmarks/table.py $(if $(RECORD),--record)

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing into .venv (once; about 6.4 GB) …'
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/.tested: .venv/.installed
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
