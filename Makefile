# Two commands do all their own set-up: `make run` and `make test`.
# Everything is installed into .venv; PYTHON picks the interpreter that makes it (3.10 or newer).

PYTHON ?= python3
BIN := .venv/bin
TINY := models/dia-tiny/config.json

.PHONY: run test check model clean

run: $(TINY)
	@RUNPOD_LOG_LEVEL=WARN KEEP_RESULTS_IN=out $(BIN)/python handler.py

test: .venv/.test-ready $(TINY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -q

model: $(TINY)

$(TINY): builder/make_tiny.py builder/model_folder.py | .venv/.run-ready
	$(BIN)/python -m builder.make_tiny $(@D)

.venv/.run-ready: builder/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=…" if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv/.test-ready: builder/requirements-test.txt tests/listening/requirements.txt .venv/.run-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/listening/requirements.txt
	touch $@

clean:
	rm -rf .venv models/dia-tiny out build .*_cache .hypothesis
