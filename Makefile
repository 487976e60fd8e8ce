# Each target does what it needs first: on a fresh machine `make run` sets up, exports, builds and runs.
#
#   make run       a story from the demo model     PROMPT=, and those of package
#   make package   checkpoint -> package folder    MODEL=, PACKAGE=, MAX_LENGTH=, PREFILL_LENGTHS=, DTYPE=, CACHE=
#                  of TFLite                       FORMAT=tflite, QUANTIZE=dynamic_int8
#   make test      all tests        make lint   style, types and imports      make docs   the filters' pages
#   make test-fast the quick tests of every package: a tenth of the time
#   make demo      train the demo model again: half an hour (see tinyllama/demo/README.md)

VENV       ?= .venv
PYTHON     ?= python3
MODEL      ?= tinyllama/demo/checkpoint
PACKAGE    ?= tinyllama
MAX_LENGTH ?= 32
# Tokens that one prefill reads, such as 64,128,256; those that fit MAX_LENGTH where nothing is said.
PREFILL_LENGTHS ?=
CACHE      ?= concat
DTYPE      ?= float32
# circle; or tflite, with the signatures of AI Edge, quantised by a recipe (see docs/filters/quantize.weights.py.md).
FORMAT     ?= circle
QUANTIZE   ?= none
PROMPT     ?= Lily picked up a flower.
# Where the plain index serves PyTorch with CUDA, name the index of its CPU builds here.
TORCH      ?= torch==2.13.0

# By way of the environment, so that a prompt may have quotes in it.
export PROMPT

BIN     := $(VENV)/bin
SOURCES := $(shell find export o2o tinyllama -name '*.py') $(wildcard $(MODEL)/*)

.PHONY: setup package run test test-fast lint docs demo clean FORCE
.DELETE_ON_ERROR:

setup: $(BIN)/.ready

# torch first and pinned: whatever comes later finds it there and does not fetch a larger one.
$(BIN)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[export,dev]'
	touch $@

package: $(PACKAGE)/model.$(FORMAT)

# Made again when the sources changed, or when it is asked for from another model or in another form.
MADE_OF := $(MODEL) $(MAX_LENGTH) $(PREFILL_LENGTHS) $(CACHE) $(DTYPE) $(FORMAT) $(QUANTIZE)
$(PACKAGE)/model.$(FORMAT): $(BIN)/.ready $(SOURCES) $(PACKAGE)/.made-of
	$(BIN)/python tinyllama/pipeline.py --model '$(MODEL)' --package '$(PACKAGE)' --max-length $(MAX_LENGTH) --cache $(CACHE) --dtype $(DTYPE) \
	  --format $(FORMAT) --quantize $(QUANTIZE) $(if $(PREFILL_LENGTHS),--prefill-lengths $(PREFILL_LENGTHS))

$(PACKAGE)/.made-of: FORCE
	@mkdir -p '$(PACKAGE)'
	@echo '$(MADE_OF)' | cmp -s - '$@' || echo '$(MADE_OF)' > '$@'

run: package
	@$(BIN)/python -m runtime_py.run '$(PACKAGE)' --prompt "$$PROMPT"

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python -m o2o.docs

demo: setup
	$(BIN)/python -m tinyllama.demo.train --out tinyllama/demo/checkpoint --steps 15000 --seed 0 --threads 1

clean:
	rm -rf $(VENV) build *.egg-info *.circle tinyllama/*.circle tinyllama/*.tflite tinyllama/tokenizer* tinyllama/*config.json tinyllama/.made-of
