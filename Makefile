# Two commands do all: `make demo` and `make test`. Both create .venv on first use.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
PYTEST = $(RUN) -m pytest
# Two processes that do not spin while they wait for each other's threads.
PARALLEL = OMP_WAIT_POLICY=PASSIVE $(PYTEST) -n 2 --dist worksteal
SOURCES = pyproject.toml CMakeLists.txt $(shell find csrc -type f)

# A machine with a GPU keeps the torch it has; elsewhere the pins of the dev extra choose one.
HAS_GPU_TORCH = import sys, torch; sys.exit(not torch.cuda.is_available())

.PHONY: demo test gates sanitize lint bench build clean

demo: build
	$(RUN) recipes/reasoning_gym/train.py

# One process per tier: fast first, then machine code, sanitizers, what needs many GB, Triton's
# interpreter, the frameworks.
test: lint
	$(RUN) tests/cpp/build.py > /dev/null || true  # once, and not by each process; tests say why not
	$(PARALLEL) -m "not slow and not frameworks and not gpu" --ignore=tests/gates
	$(MAKE) gates
	$(MAKE) sanitize
	$(PYTEST) -m "slow and not frameworks and not gpu" --ignore=tests/gates
	TRITON_INTERPRET=1 $(PARALLEL) tests/ops -k triton -m "not slow and not gpu"
	HF_HUB_OFFLINE=1 $(PARALLEL) -m "frameworks and not gpu"
	$(RUN) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || exit 0; \
	    $(PYTEST) -m gpu

# What the compilers made of the GPU kernels; no GPU is needed.
gates: build
	$(PYTEST) tests/gates

# The CUDA kernels on a CPU, under each sanitizer; a report ends the run.
sanitize: build
	for variant in address thread initcheck; do \
	    $(RUN) tests/cpp/sanitized.py $$variant -m pytest tests/ops -k cuda --capture=sys -n 2 \
	        -m "not slow and not frameworks and not gpu" || exit 1; \
	done

lint: build
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(VENV)/bin/codespell

bench: build
	$(RUN) benchmarks/run.py token_log_probs
	$(RUN) benchmarks/run.py linear_log_probs
	for op in policy_loss covariance_clip flow_balance gae action_sampling token_sampling; do \
	    $(RUN) benchmarks/run.py $$op || exit 1; \
	done

build: $(VENV)/.ready

$(VENV)/.ready: $(SOURCES)
	test -d $(VENV) || if $(PYTHON) -c "$(HAS_GPU_TORCH)" 2>/dev/null; \
	    then $(PYTHON) -m venv --system-site-packages $(VENV); \
	    else $(PYTHON) -m venv $(VENV); fi
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[dev,recipes]"
	touch $@

clean:
	rm -rf $(VENV) build
