# Every target works from a fresh clone: it makes the environment it needs first.

PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
# Two test processes of one thread each beat one process of two threads.
PYTEST_FLAGS ?= -n 2
export OMP_NUM_THREADS ?= 1
# The interpreter is chosen when the kernels are first imported: its tests run in processes of their own.
INTERPRET := TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test test-slow test-lowest gpu lint bench-cpu kernel-report clean

help:
	@echo "make demo         prune a real clip to 10 % and draw what was kept (fastvid_demo.png)"
	@echo "make test         the tests, minutes on two cores"
	@echo "make test-slow    the long ones"
	@echo "make test-lowest  the tests with the oldest supported versions (constraints-lowest.txt)"
	@echo "make gpu          on a machine with CUDA, as it is: correctness, determinism, graph capture, one timing table"
	@echo "make lint         ruff and mypy"
	@echo "make bench-cpu    the eager backend beside the published forms, on this CPU"
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

demo: .venv/installed
	OMP_NUM_THREADS=$$(nproc) $(BIN)/fastvid demo

test: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_FLAGS)
	$(INTERPRET) $(BIN)/python -m pytest $(PYTEST_FLAGS) -m "interpreter and not slow" tests/kernels

test-slow: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow
	$(INTERPRET) $(BIN)/python -m pytest $(PYTEST_FLAGS) -m "interpreter and slow" tests/kernels

test-lowest: .venv-lowest/installed
	$(LOWEST)/python -m pytest $(PYTEST_FLAGS)
	$(INTERPRET) $(LOWEST)/python -m pytest $(PYTEST_FLAGS) -m "interpreter and not slow" tests/kernels

gpu:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-cpu: .venv/installed
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m benchmarks.compare_cpu --output benchmarks/results/cpu.json

kernel-report: .venv/installed
	$(BIN)/python -m benchmarks.kernel_report

clean:
	rm -rf .venv .venv-lowest
