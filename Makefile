# The commands of the house; `make` alone lists them.
#   PYTHON=python3.12    the interpreter that makes .venv (gpu-test: that runs the tests)
#   TORCH_INDEX=URL      the package index that torch, and only torch, is taken from

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
EXPORTERS := .exporters
EXPORTING := HF_HUB_OFFLINE=1 PYTHONHASHSEED=0# the order of sets decides names in what dynamo writes
TORCH := import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cpu"][0])

.DEFAULT_GOAL := help
.PHONY: help demo test test-viewer test-exporters check gpu-test

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: $(INSTALLED) ## trace the demo model, compile it, run the plan; leaves demo/plan.hjg
	mkdir -p demo
	$(BIN)/hjgc export models/demo -o demo/model.onnx --link hard
	$(BIN)/hjgc compile demo/model.onnx -o demo/plan.hjg
	$(BIN)/hjgc run demo/plan.hjg --prompt "If the file" --temperature 0.7 --repetition-penalty 1.1 --seed 0 --stats

test: $(INSTALLED) ## run every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu and not browser and not exporters"

test-viewer: $(INSTALLED) ## the tests of the page of `hjgc view`, in Chromium ($$HJGC_BROWSER; with its driver)
	$(BIN)/python -m pytest -m browser tests/viewer

test-exporters: $(INSTALLED) $(EXPORTERS)/env-4/.installed $(EXPORTERS)/env-5/.installed ## compile what other exporters write (network, most of an hour); HJGC_ACCEPT=1 renews docs/exporters.md
	$(EXPORTING) $(EXPORTERS)/env-4/bin/python -m tests.exporters.make_models $(EXPORTERS)/models
	$(EXPORTING) $(EXPORTERS)/env-5/bin/python -m tests.exporters.make_models $(EXPORTERS)/models
	$(BIN)/python -m pytest -m exporters tests/exporters

check: $(INSTALLED) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

gpu-test: ## run tests/gpu with $(PYTHON) as it is: makes no .venv, uses no network
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m pytest -m gpu tests/gpu

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "expected Python 3.11 or newer, found " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --no-deps --index-url "$(TORCH_INDEX)" "$$($(BIN)/python -c '$(TORCH)')")
	$(BIN)/python -m pip install -e '.[cpu,export,aot,cuda,ort,dev]'
	@touch $@

$(EXPORTERS)/env-%/.installed: tests/exporters/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(if $(TORCH_INDEX),$(@D)/bin/python -m pip install --no-deps --index-url "$(TORCH_INDEX)" "$$(grep ^torch== $<)")
	$(@D)/bin/python -m pip install -r $<
	@touch $@
