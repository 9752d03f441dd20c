# Every target does its own set-up: a fresh clone needs nothing but Python 3.11-3.13 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH := $(VENV)/bench

.DEFAULT_GOAL := help
.PHONY: help setup setup-bench demo test test-gpu test-capabilities lint format clean bench bench-gpu gpu-kit \
	bench-scaling bench-step bench-peers \
	bench-growth bench-methods bench-methods-digits bench-overfitting bench-radii bench-evaluation \
	bench-evaluation-digits bench-data bench-streaming bench-label bench-extra bench-corruptions bench-real bench-studies \
	bench-heap bench-zoo faults ruler

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

setup: $(READY)  ## virtual environment with the tested lock

# torch first: the lock pins its version, and an installer that resolves it alone never picks a second build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

setup-bench: $(BENCH)/.ready  ## a second environment with the libraries that attacks are compared with

# The last four come without their dependencies: see the extra `bench` in pyproject.toml.
$(BENCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[bench]'
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		torchattacks==3.5.1 adv-lib==0.2.8 robustness==1.2.1.post2 cox==0.2
	touch $@

demo: $(READY)  ## train natural and robust classifiers on real digits and compare them
	$(BIN)/toughen demo

test: $(READY)  ## the tests
	$(BIN)/python -m pytest -n 2

test-gpu: $(READY)  ## the tests on a GPU that is pretended on the CPU: needs g++, and no GPU
	$(BIN)/python -m pytest -n 2 -rs tests/gpu

test-capabilities: $(READY)  ## the tests as narrower processors compute: without AVX-512, without AVX2 (nightly)
	$(BIN)/python tools/capabilities.py

faults: $(READY)  ## every goal of reliability in full: kills, damage, full disks, hostile files, fuzz; the suite 20 times (4 hours)
	$(BIN)/python benchmarks/faults.py

# BEFORE: src/ of another tree, say of a commit before a re-organisation: git worktree add ../before COMMIT
ruler: $(READY)  ## proof that this tree computes what that of BEFORE=TREE/src does, and ends what that one began
	test -f "$(BEFORE)/toughen/__init__.py" || { echo "give BEFORE=TREE/src, of the tree to compare with"; exit 2; }
	$(BIN)/python benchmarks/ruler.py take --source "$(BEFORE)" --out benchmarks/results/ruler_before.json
	$(BIN)/python benchmarks/ruler.py take --source src --out benchmarks/results/ruler_after.json
	$(BIN)/python benchmarks/ruler.py cross --before "$(BEFORE)" --after src
	$(BIN)/python benchmarks/ruler.py compare benchmarks/results/ruler_before.json benchmarks/results/ruler_after.json

lint: $(READY)  ## formatting, lint and types; fails on any finding
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-gpu: $(READY)  ## on a GPU: is it right there, then how fast; each figure as it comes (an hour)
	$(BIN)/python benchmarks/gpu_session.py --seconds 3600

gpu-kit: $(READY)  ## what a session needs on a machine with a GPU and no network, in pieces; with CIFAR10=FOLDER its images
	$(BIN)/python benchmarks/gpu_kit.py $(if $(filter file,$(origin CIFAR10)),,--data "$(CIFAR10)")

bench-scaling: $(READY)  ## what many GPUs would exchange and take, calculated anew: the tables of docs/scaling.md
	$(BIN)/python benchmarks/scaling.py

bench-step: $(READY)  ## cost of our training steps against a bare torch loop, as ratios
	$(BIN)/python benchmarks/step_cost.py

bench-peers: $(BENCH)/.ready  ## a training step of ours beside other libraries', and what passes each takes
	$(BENCH)/bin/python benchmarks/peers.py

bench-growth: $(READY)  ## time and memory against images, batch, steps, classes and ranks, with fitted lines
	$(BIN)/python benchmarks/growth.py

bench-methods: bench-methods-digits  ## every training method side by side, with AutoAttack and the audit (hours)
	$(BIN)/python benchmarks/methods.py cifar runs/methods --data $(CIFAR10)
	$(BIN)/python benchmarks/methods.py report runs/methods

bench-methods-digits: $(READY)
	$(BIN)/python benchmarks/methods.py digits runs/methods

bench-overfitting: $(READY)  ## the alarm for catastrophic overfitting: collapses, controls, and what a check costs
	$(BIN)/python benchmarks/overfitting.py

bench-radii: $(READY)  ## IAAT with reused selection against algorithm 2 as it stands
	$(BIN)/python benchmarks/radius_reuse.py

# CIFAR10: a folder of its parquet files, or a name that the Hub knows.
CIFAR10 ?= cifar10

bench-evaluation: bench-evaluation-digits  ## our AutoAttack and `adaptive` against others, side by side (an hour)
	$(BENCH)/bin/python benchmarks/evaluation.py resnet18 ours pyautoattack --n 128 --data $(CIFAR10)
	$(BENCH)/bin/python benchmarks/evaluation.py resnet18 torchattacks adaptive --n 128 --data $(CIFAR10)
	$(BENCH)/bin/python benchmarks/evaluation_peers.py --data $(CIFAR10)
	$(BENCH)/bin/python benchmarks/evaluation.py report

bench-evaluation-digits: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/evaluation.py robust ours pyautoattack
	$(BENCH)/bin/python benchmarks/evaluation.py robust torchattacks adaptive
	$(BENCH)/bin/python benchmarks/evaluation.py linear ours adaptive
	$(BENCH)/bin/python benchmarks/evaluation.py standard ours adaptive
	$(BENCH)/bin/python benchmarks/evaluation.py report

bench-zoo: $(READY)  ## AutoAttack, `adaptive` and `exhaustive` on small networks of many kinds, some solved exactly (an hour)
	$(BIN)/python benchmarks/zoo.py --data $(CIFAR10)

bench-data: bench-streaming  ## CIFAR-10 by every route, and how fast photographs are streamed
	$(BENCH)/bin/python benchmarks/routes.py --data $(CIFAR10) runs/routes

bench-streaming: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/streaming.py runs/streaming

bench-label: $(READY)  ## an extra set built from CIFAR-10, planted copies, kills, and a million images (20 minutes)
	$(BIN)/python benchmarks/labelling.py --data $(CIFAR10) runs/labelling

bench-extra: $(READY)  ## an extra set of 5 GB that is streamed: memory, rate, time to open and to resume (5 minutes)
	$(BIN)/python benchmarks/large_extra_set.py --write

bench-corruptions: $(BENCH)/.ready  ## the 19 corruptions against imagecorruptions-imaug
	$(BENCH)/bin/python benchmarks/corruptions.py --draws 200 --rounds 9 --data $(CIFAR10)

bench-real: $(BENCH)/.ready  ## two real networks: loaded, checked, attacked, and fed wrongly on purpose
	$(BENCH)/bin/python benchmarks/real_models.py --data $(CIFAR10)

bench-studies: $(READY)  ## every study at toy scale, with workers killed and bad rows (nightly)
	$(BIN)/python benchmarks/studies.py runs/bench-studies

bench-heap: $(READY)  ## whether torch's convolutions on the CPU keep to their memory, under malloc's checks (nightly)
	$(BIN)/python benchmarks/heap_checks.py

# In an order that shows what is short first. `?=` above gives CIFAR10 the origin "file".
bench:  ## every benchmark, one after the other (hours); those on CIFAR-10 only with CIFAR10=FOLDER
	$(MAKE) bench-growth
	$(MAKE) bench-step
	$(MAKE) bench-peers
	$(MAKE) bench-overfitting
	$(MAKE) bench-radii
	$(MAKE) bench-studies
	$(MAKE) bench-heap
ifneq ($(origin CIFAR10),file)
	$(MAKE) bench-data
	$(MAKE) bench-corruptions
	$(MAKE) bench-real
	$(MAKE) bench-label
	$(MAKE) bench-zoo
	$(MAKE) bench-evaluation
	$(MAKE) bench-methods
else
	$(MAKE) bench-streaming
	$(MAKE) bench-evaluation-digits
	$(MAKE) bench-methods-digits
endif
	@echo "Rows of the table of methods are in runs/methods; all else that was measured is in benchmarks/results/:"
	@ls -t benchmarks/results/*.md

clean:  ## remove the environment and caches (never runs/)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
