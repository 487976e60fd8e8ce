# Each target does what it needs first: on a fresh machine `make run` sets up, exports, builds and runs.
#
#   make run       a story from the demo model     PROMPT=, and the variables of package
#   make package   checkpoint to package folder    MODEL=, PACKAGE=, MAX_LENGTH=, PREFILL_LENGTHS=, DTYPE=, CACHE=
#                  of TFLite                       FORMAT=tflite, QUANTIZE=dynamic_int8
#   make test      all tests        make lint   style, types and imports
#   make families  every model family: convert, run, compare with transformers: half an hour   ONLY=gemma,phi
#   make docs      the documentation in build/site      make docs-test   runs the examples of README and docs
#   make test-fast the quick tests of every package: a tenth of the time
#   make litertlm  LiteRT-LM's texts and this project's, word for word   LITERTLM_MODEL=
#   make wheel     the wheel and its extras in empty environments of each Python   PYTHONS=3.11,3.12,3.13
#   make view      a model or package in Netron, installed into build/netron   MODEL=tinyllama/model.circle
#   make demo      train the demo model again: half an hour (see tinyllama/demo/README.md)

VENV       ?= .venv
PYTHON     ?= python3
MODEL      ?= tinyllama/demo/checkpoint
PACKAGE    ?= tinyllama
MAX_LENGTH ?= 32
# Tokens that one prefill reads, such as 64,128,256. Empty: those of 64, 128, 256 that fit MAX_LENGTH.
PREFILL_LENGTHS ?=
# concat or static. Empty: static for model families whose attention cannot be fused, else concat.
CACHE      ?=
DTYPE      ?= float32
# circle; or tflite, with AI Edge's signatures, quantized by a recipe (see docs/filters/quantize.weights.py.md).
FORMAT     ?= circle
QUANTIZE   ?= none
PROMPT     ?= Lily picked up a flower.
LITERTLM_MODEL ?= tinyllama/demo/checkpoint
PYTHONS    ?= 3.11,3.12,3.13
# Model types or parts of their names, such as gemma,phi. Empty: all.
ONLY       ?=
# Set this to the index of PyTorch's CPU builds where the plain index serves CUDA builds.
TORCH      ?= torch==2.13.0

# Recipes read these from the environment and quote them: they may hold any character, also `$`.
INPUTS := MODEL PACKAGE MAX_LENGTH PREFILL_LENGTHS CACHE DTYPE FORMAT QUANTIZE PROMPT ONLY
$(foreach name,$(INPUTS),$(eval override $(name) := $$(value $(name))))
export $(INPUTS)

BIN := $(VENV)/bin
# On a terminal pip names each package and shows its progress; in a pipe only errors.
PIP := $(BIN)/pip install --disable-pip-version-check $$(test -t 2 || echo --quiet)

.PHONY: setup package run test test-fast families families-ci lint docs docs-test demo browser litertlm wheel clean
.DELETE_ON_ERROR:

setup: $(BIN)/.ready

# torch first and pinned: later installs find it and do not fetch a larger build.
$(BIN)/.ready: pyproject.toml
	@echo "setup: installing PyTorch and the other packages into $(VENV), 2 to 5 minutes" >&2
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[export,dev]'
	touch $@

# The command itself checks whether the package is up to date: PACKAGE is no target, since it may hold spaces.
package: setup
	@$(BIN)/python tinyllama/pipeline.py --if-changed --model="$$MODEL" --package="$$PACKAGE" \
	  --max-length="$$MAX_LENGTH" --dtype="$$DTYPE" --format="$$FORMAT" --quantize="$$QUANTIZE" \
	  $${CACHE:+--cache="$$CACHE"} $${PREFILL_LENGTHS:+--prefill-lengths="$$PREFILL_LENGTHS"}

run: package
	@$(BIN)/python -m runtime_py.run --prompt="$$PROMPT" -- "$$PACKAGE"

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow'

# Results are in build/families; `make families ONLY=gemma,phi` checks a part. See docs/families.md.
families: setup
	$(BIN)/python -m tests.families $${ONLY:+--only="$$ONLY"}

families-ci: setup
	$(BIN)/python -m tests.families --ci

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a broken link or reference fails. Zensical is installed here only; nothing else needs it.
docs: $(BIN)/.docs-ready
	$(BIN)/python -m docs.tools.generate
	$(BIN)/zensical build --clean --strict
	$(BIN)/python -m docs.tools.check_site build/site

$(BIN)/.docs-ready: $(BIN)/.ready
	$(PIP) --editable '.[docs]'
	touch $@

docs-test: setup
	$(BIN)/python -m docs.tools.run_examples

# Chromium tests the chat page; without it, these tests are skipped.
browser:
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes chromium

# Installs LiteRT-LM into an environment of its own.
litertlm: setup
	$(BIN)/python -m bench.litert_lm "$(LITERTLM_MODEL)"

wheel: setup
	$(BIN)/python -m tests.wheel --pythons $(PYTHONS) --torch "$(TORCH)"

# Netron has an environment of its own. Its page first asks for consent to usage reports.
# `inspect.model.py --html` needs no installation, and reports nothing.
view: build/netron/.ready
	build/netron/bin/netron "$$(test -d "$$MODEL" && ls "$$MODEL"/model.* | head -1 || echo "$$MODEL")"

build/netron/.ready:
	$(PYTHON) -m venv build/netron
	build/netron/bin/pip install --disable-pip-version-check --quiet netron
	touch $@

demo: setup
	$(BIN)/python -m tinyllama.demo.train --out tinyllama/demo/checkpoint --steps 15000 --seed 0 --threads 1

clean:
	rm -rf $(VENV) build *.egg-info *.circle tinyllama/*.circle tinyllama/*.tflite tinyllama/*.litertlm tinyllama/tokenizer* tinyllama/*config.json tinyllama/.built-from
