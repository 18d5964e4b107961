# The README's two commands, each with all its own set-up from a bare Python with venv:
#   make demo    make test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: notebook wild fleet ray check-tools check-pages site bench-large demo test test-heavy test-converters fuzz lock audit mutants zoo-small zoo-full bank bench gpu gpu-bundle gpu-tiny clean signals hostile

demo: $(VENV)/.demo
	$(BIN)/onnxspect demo

# The modules are compiled first: where PYTHONDONTWRITEBYTECODE is set, each of the many processes that the tests start would do it anew.
test: $(VENV)/.test
	@$(BIN)/python -m compileall -q cli converters engine models onnxspect
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: an unpinned one may bring gigabytes of CUDA with it.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	touch $@

# onnx2torch, the second opinion, names torchvision as a need and runs without it; one beside a CPU torch is hard to have.
# Compiled afterwards: pip compiles one module after the other, for as long as all the rest takes it.
$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --no-compile -c constraints.txt -e '.[test,keras,tensorflow,jax,sklearn]'
	$(PIP) --no-compile -c constraints.txt --no-deps onnx2torch
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true  # some packages have templates among their modules
	touch $(VENV)/.demo $@

# With LOCKED=1 everything but torch is installed by the hashes of requirements-ci.txt (torch is the build that constraints.txt's version has
# on the machine's own index, with CUDA or without, and so has no one hash).
ifdef LOCKED
$(VENV)/.locked: requirements-ci.txt constraints.txt | $(VENV)/bin/python
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --require-hashes -r requirements-ci.txt
	touch $@
$(VENV)/.demo $(VENV)/.test: $(VENV)/.locked
endif

# What the tests of the report's formats and pages use where it is there: Microsoft's SARIF Multitool (npm), Debian's Chromium (as root).
check-tools:
	npm install --no-save --no-audit --no-fund --prefix build/npm @microsoft/sarif-multitool@5.7.0
	chmod u+x build/npm/node_modules/@microsoft/sarif-multitool-linux/Sarif.Multitool
	command -v chromium || { apt-get update && apt-get install --yes --no-install-recommends chromium poppler-utils fonts-dejavu-core; }

# The pages of docs/ as a site, in build/site; links to the code need the repository's address: make site REPO=https://...
site: $(VENV)/.demo
	$(PIP) 'mkdocs-material>=9.6,<10'
	NO_MKDOCS_2_WARNING=1 REPO=$(REPO) $(BIN)/mkdocs build --strict

# The notebook of docs/ alone, from top to bottom; `make test` runs it too.
notebook: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_site.py -k notebook

# Ray is not in it: the default tests need none, and `make ray` installs it by constraints.txt.
# Writes requirements-ci.txt anew after a change of pyproject.toml or constraints.txt: needs uv. No index is named in it.
lock:
	uv pip compile pyproject.toml --extra test --extra keras --extra tensorflow --extra jax --extra sklearn --extra second-opinion -c constraints.txt --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
	  $(foreach p,torch torchvision triton $(NVIDIA),--no-emit-package $(p)) -o requirements-ci.txt
NVIDIA = $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 \
  nvjitlink nvshmem-cu13 nvtx) cuda-bindings cuda-pathfinder cuda-toolkit

# Known vulnerabilities of what is locked: needs pip-audit, and asks the package index about each of these packages.
audit:
	pip-audit --requirement requirements-ci.txt --require-hashes --disable-pip

# Mutants of everything that is parsed here, for SECONDS; what breaks a promise is kept in tests/fuzz_kept, where the tests replay it.
SECONDS ?= 3600
fuzz: $(VENV)/.test
	$(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS)

# Every command on hostile inputs of every kind, watched: half an hour on two cores (docs/threat-model.md, "Measured").
hostile: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hostile_inputs.py --out benchmarks/results/hostile_inputs.json

# What `make test` leaves out: further examples of what a lighter test holds.
test-heavy: $(VENV)/.test
	ONNXSPECT_FULL=1 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m heavy -n 2 --dist loadfile

# All networks through all formats and exporters, and many more random graphs: heavier than `make test` may be.
test-converters: $(VENV)/.test
	ONNXSPECT_FULL=1 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/converters/sources/test_sources_applications.py \
	  tests/converters/lowering/test_lowering_exports.py tests/converters/lowering/test_lowering_light.py tests/converters/lowering/test_lowering_random.py

# Files as other people ship them, each made anew and opened in locked-in processes: benchmarks/results/wild_files.json, and the page of it.
wild: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python benchmarks/wild_files.py --locked-in
	$(BIN)/python docs/make_compatibility.py

# Every page in the browser, at three widths and in both themes: check-tools installs what that takes.
check-pages: $(VENV)/.test
	ONNXSPECT_FULL=1 $(BIN)/python -m pytest tests/engine/report/test_browser.py

# Fifty signals to each command, and two hundred kills of one scan, at seeded moments.
signals: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/signals.py --moments 50 --out benchmarks/results/signals.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kill_resume.py --tiny --forked --moments 200 --out benchmarks/results/kill_resume.json

# Many tiny models in one command, undisturbed and under kill -9: half an hour on two cores (docs/many-models.md).
fleet: $(VENV)/.test
	$(BIN)/python benchmarks/many_models.py --models 500 --preset standard --kills 20 --out benchmarks/results/many_models.json
	$(BIN)/python benchmarks/fleet_scheduling.py --out benchmarks/results/fleet_scheduling.json

# Many models on a Ray cluster of several nodes on this machine, two of which are killed.
ray: $(VENV)/.test
	$(PIP) -c constraints.txt -e '.[ray]'
	ONNXSPECT_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engine/fleet/test_on_ray.py

# Heavier things; DATA is a folder with the data sets as npz.
DATA ?= $(ONNXSPECT_DATA)

zoo-small: $(VENV)/.test
	$(BIN)/python -m onnxspect.models.train_zoo --list small --out zoo --workers 2 --data-root $(DATA)

zoo-full: $(VENV)/.test
	$(BIN)/python -m onnxspect.models.train_zoo --list full --out zoo-full --data-root $(DATA)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/demo.py --data-root $(DATA) --out benchmarks/results/demo.json
	$(BIN)/python benchmarks/detection.py --zoo zoo --data-root $(DATA) --out benchmarks/results/detection_standard.json
	$(BIN)/python docs/make_results.py

# The bank of models that verdicts are calibrated by (docs/detectors.md): trains and scans the named families of both halves, MOST clean and infected
# models of each, then derives what ships and judges all kept evidence. What is there is not made again; all families are days of CPU time.
MOST ?= 4
TUNING ?= digits_lenet5
JUDGING ?= fashion_keras
bank: $(VENV)/.test
	for family in $(TUNING:%=tuning/%) $(JUDGING:%=judging/%); do \
	  half=$${family%/*}; \
	  $(BIN)/python -m onnxspect.models.train_bank --part $$half --family $${family#*/} --most $(MOST) --data-root $(DATA) --out bank/$$family; \
	  $(BIN)/python benchmarks/bank.py --bank bank/$$family --half $$half --data-root $(DATA) || exit 1; \
	done
	$(BIN)/python benchmarks/derive.py
	$(BIN)/python benchmarks/replay.py --bank --out benchmarks/results/replay.json
	$(BIN)/python benchmarks/unseen_families.py --out benchmarks/results/unseen_families.json

# Are the tests of what judges, searches and writes able to fail? (docs/mutation.md)
mutants: $(VENV)/.test
	$(PIP) -c constraints.txt -e '.[mutants]'
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py

# A model beyond protobuf's 2 GiB: 15 GiB of memory, 8 GiB of disk.
bench-large: $(VENV)/.test
	$(BIN)/python benchmarks/large_model.py --folder build/large --out benchmarks/results/large_model.json

# All that a CUDA machine without network needs, in one folder (docs/gpu.md); IMAGENET is a folder with the 1,000-class network.
gpu-bundle: $(VENV)/.demo
	$(BIN)/python benchmarks/gpu_bundle.py --out bundle --data-root $(DATA) $(if $(IMAGENET),--imagenet $(IMAGENET))

# There, with a Python that has torch for CUDA: `make gpu PYTHON=python3`.
gpu:
	$(PYTHON) benchmarks/gpu.py --bundle bundle --out benchmarks/results/gpu.json

# Everything in it once on this machine's CPU.
gpu-tiny: $(VENV)/.demo
	$(BIN)/python benchmarks/gpu.py --tiny --bundle bundle --minutes 15 --out build/gpu-tiny.json

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
