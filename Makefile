# `make demo` and `make test` are all that a fresh machine needs; each sets up what it uses.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-kaggle test-kaggle-next lint format notebooks pictures picture-ohif bench \
	ablation ablation-quick real honesty gpu fuzz torture clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
PY := .venv/bin/python
READY := .venv/.ready
PYTHON_kaggle ?= 3.12
PYTHON_kaggle-next ?= 3.13
NOTEBOOKS := $(filter-out notebooks/papermill_sentences.py,$(wildcard notebooks/*.py))
DEMO := demo
SEEDS := 3
DATA := ../shared/data/stage2-512
CASES := 100000
SEED := 0
KILLS := 200
SETS := 400
FULL := 60

# A notebook's kernel must be this environment's, whatever else is on the machine.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export NO_ALBUMENTATIONS_UPDATE := 1
# Without compiled files on the disk every start of Python compiles torch anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo       synthetic radiographs to a checked submission and a report, in minutes"
	@echo "make test       lint and tests; make test-slow: the rest"
	@echo "make test-kaggle  all tests with the versions of Kaggle's image, in an environment apart;"
	@echo "                  make test-kaggle-next: with those of its likely next image"
	@echo "make setup      only the environment     make bench     speed and memory, in an hour"
	@echo "make notebooks  .ipynb from .py          make format    ruff over the tree"
	@echo "make fuzz       damaged and hostile files to every reader, CASES=1000000"
	@echo "make ablation   claims of the reference solution tried, in hours, SEEDS=3; make ablation-quick: minutes"
	@echo "make real       the lite0 experiments on real radiographs, in hours, DATA=FOLDER;"
	@echo "                with GPU=1 that for a GPU"
	@echo "make honesty    do honest scores hold on new images? simulated, in hours, SETS=400"
	@echo "make gpu        all that only a GPU can show, in nine minutes, into gpu-results/"
	@echo "make torture    every stage killed, KILLS=200, or its disk full, FULL=60: does it end the same?"

setup: $(READY)

$(READY): requirements.txt notebooks/papermill_sentences.py
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: PYTHON=/path/to/python make"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) has no venv module: install it (Debian: apt install python3-venv)"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep ^uv== requirements.txt)"
	.venv/bin/uv pip sync --quiet --python $(PY) requirements.txt
	@cp notebooks/papermill_sentences.py .venv/lib/python3.*/site-packages/
	@echo "import papermill_sentences" > "$$(echo .venv/lib/python3.*/site-packages)/papermill_sentences.pth"
	@touch $@

demo: $(READY)
	rm -rf $(DEMO)
	$(PY) -m kernel_lib phantoms $(DEMO)/data --train 300 --test 80 --size 512 --difficulty 0.15
	papermill notebooks/train.ipynb $(DEMO)/train.ipynb --log-output --no-progress-bar \
		-p EXPERIMENT demo_UNetResNet10_128_v1 -p N_FOLDS 2 -p DATA_DIR $(DEMO)/data \
		-p WORK_DIR $(DEMO)/work -p CACHE_DIR $(DEMO)/cache
	papermill notebooks/thresholds.ipynb $(DEMO)/thresholds.ipynb --log-output --no-progress-bar \
		-p WORK_DIR $(DEMO)/work -p DATA_DIR $(DEMO)/data
	papermill notebooks/inference.ipynb $(DEMO)/inference.ipynb --log-output --no-progress-bar \
		-p DATA_DIR $(DEMO)/data -p WORK_DIR $(DEMO)/work -p CACHE_DIR $(DEMO)/cache
	$(PY) -m kernel_lib validate $(DEMO)/work/ensembles/*/submission.csv \
		--sample $(DEMO)/data/sample_submission.csv --shape 512 512
	$(PY) -m kernel_lib view $(DEMO)/work/ensembles/* --data $(DEMO)/data --count 60
	$(PY) -m kernel_lib summary $(DEMO)/work/ensembles/* --truth $(DEMO)/data/phantom-test-truth.csv

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

# Kaggle's own versions, and those of its next image. A kernel that a test starts must find them first too.
test-kaggle test-kaggle-next: test-%: .venv-%/.ready
	PATH="$(CURDIR)/.venv-$*/bin:$$PATH" OMP_NUM_THREADS=1 \
		.venv-$*/bin/python -m pytest -m "not slow" -n 2 --dist worksteal
	PATH="$(CURDIR)/.venv-$*/bin:$$PATH" OMP_NUM_THREADS=1 \
		.venv-$*/bin/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

# uv takes the Python from the PATH, or downloads it.
.venv-%/.ready: requirements-%.txt $(READY)
	@test -x .venv-$*/bin/python || .venv/bin/uv venv --quiet --python $(PYTHON_$*) .venv-$* || { \
		echo "Python $(PYTHON_$*) is needed: make test-$* PYTHON_$*=/path/to/python"; exit 1; }
	.venv/bin/uv pip sync --quiet --python .venv-$*/bin/python $<
	@touch $@

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

format: $(READY)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

notebooks: $(READY)
	.venv/bin/jupytext --quiet --to ipynb $(NOTEBOOKS)

pictures: $(READY)
	PYTHONPATH=. $(PY) docs/make_pictures.py $(DEMO) docs/pictures

# OHIF comes from the npm registry, into a temporary folder.
picture-ohif: $(READY)
	PYTHONPATH=. $(PY) docs/make_ohif_picture.py docs/pictures/ohif.png

bench: $(READY)
	$(PY) -m tools.benchmarks --write

ablation: $(READY)
	$(PY) -m tools.ablation run --seeds $(SEEDS)

ablation-quick: $(READY)
	$(PY) -m tools.ablation run --quick

# Five folds of the lite0 experiments and their variants; skips where DATA is absent.
real: $(READY)
	$(PY) -m tools.ablation real --data $(DATA) $(if $(GPU),--gpu --at-once 5)

honesty: $(READY)
	$(PY) -m tools.ablation honesty --sets $(SETS)

# Needs no environment of ours: what the machine has, or what is on PYTHONPATH.
gpu:
	python3 -m tools.benchmarks.gpu --limit-s 540 --data $(DATA) --out gpu-results

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m tools.fuzz --cases $(CASES) --seed $(SEED)

torture: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m tools.torture --kills $(KILLS) --full-disk $(FULL)

clean:
	rm -rf build fuzz-faults $(DEMO) .pytest_cache .ruff_cache .hypothesis
