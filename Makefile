# Every workflow of the project. On a fresh machine `make chat` and `make test` are all the set-up there is.
# Needs: Python 3.11+, a C++20 compiler, make. Everything else comes from the package index that pip is set up with.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc -name '*.cpp' -o -name '*.h')
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
# Where Python is told not to write bytecode, each start of the program would compile all of it anew.
COMPILE := $(PY) -m compileall -q src/finback
# The sanitizer build of the kernels: scalar lanes, loaded into a Python that has the sanitizer's runtime preloaded.
ASAN_ENV = LD_PRELOAD=$$(c++ -print-file-name=libasan.so):$$(c++ -print-file-name=libubsan.so) \
           ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
           PYTHONPATH=build/sanitize/site

.DEFAULT_GOAL := help
.PHONY: help chat test check lint types layers warnings sanitize fuzz parity vectors bench native clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

chat: $(VENV)/.run  ## build, fetch the small default model, and talk to it
	@$(VENV)/bin/finback chat

test: $(VENV)/.test  ## build and run the tests (no network, no GPU, no model)
	$(PY) -m pytest -q

check: lint types layers warnings sanitize  ## everything that must be clean before a commit

lint: $(VENV)/.check  ## style and format, Python and C++
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(VENV)/bin/clang-format --dry-run --Werror

types: $(VENV)/.check  ## static types, strictly
	$(VENV)/bin/mypy

layers: $(VENV)/.check  ## who may import whom
	$(VENV)/bin/lint-imports

warnings: $(VENV)/.check  ## C++ for every instruction set, warnings as errors
	cmake -S . -B build/warnings -DFINBACK_WERROR=ON -DPython_EXECUTABLE=$(abspath $(PY)) > build-warnings.log
	cmake --build build/warnings --parallel $(JOBS) >> build-warnings.log || { tail -40 build-warnings.log; exit 1; }
	@rm build-warnings.log

build/sanitize/site: $(SOURCES) $(VENV)/.check
	cmake -S . -B build/sanitize -DFINBACK_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(PY)) > /dev/null
	cmake --build build/sanitize --parallel $(JOBS)
	rm -rf $@ && mkdir -p $@/finback
	cp -rs $(abspath src/finback)/* $@/finback/
	rm -f $@/finback/_native*.so && cp build/sanitize/_native*.so $@/finback/
	@# An editable install finds itself before PYTHONPATH is looked at, unless its finder is taken out.
	echo 'import sys; sys.meta_path = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_skbc")]' \
	    > $@/sitecustomize.py
	$(ASAN_ENV) $(PY) -c 'from finback import _native; assert "build/sanitize" in _native.__file__, _native.__file__'

sanitize: build/sanitize/site  ## kernel tests under AddressSanitizer and UBSan (scalar build)
	$(ASAN_ENV) $(PY) -m pytest -q tests/kernels -p no:cacheprovider

MUTATIONS ?= 10000
fuzz: build/sanitize/site  ## mutated model files under the sanitizers
	$(ASAN_ENV) $(PY) -m tests.weights.fuzz --mutations $(MUTATIONS)

parity: $(VENV)/.parity  ## live comparison with transformers, gguf and llama.cpp
	$(PY) -m pytest -q -m parity

vectors: $(VENV)/.parity  ## regenerate the golden vectors from their oracles
	$(PY) -m tests.vectors.make

bench: $(VENV)/.run  ## speed of the default model on this machine
	$(VENV)/bin/finback bench

native:  ## compile csrc in place, for development with PYTHONPATH=src (PYTHON must have nanobind)
	cmake -S . -B build/native -DPython_EXECUTABLE=$(shell command -v $(PYTHON)) > /dev/null
	cmake --build build/native --parallel $(JOBS)
	cp build/native/_native*.so src/finback/

clean:  ## remove everything that was built
	rm -rf $(VENV) build src/finback/_native*.so

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Finback needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(PY) $(SOURCES)
	@echo "Building Finback in $(VENV): a minute or two, the first time"
	$(PIP_INSTALL) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.test: $(PY) $(SOURCES)
	$(PIP_INSTALL) -e '.[test]'
	@$(COMPILE)
	@touch $@ $(VENV)/.run

$(VENV)/.check: $(PY) pyproject.toml
	$(PIP_INSTALL) scikit-build-core nanobind cmake ninja
	$(PIP_INSTALL) -e '.[test,check]'
	@$(COMPILE)
	@touch $@

$(VENV)/.parity: $(PY) $(SOURCES)
	$(PIP_INSTALL) -e '.[test,parity]'
	@$(COMPILE)
	@touch $@
