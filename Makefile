# Every workflow of the project. `make chat` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
NATIVE_PYTHON ?= $(shell test -x $(PY) && echo $(PY) || echo $(PYTHON))

.PHONY: native
native:  ## compile csrc in place, for development with PYTHONPATH=src
	cmake -S . -B build/native -G Ninja -DPython_EXECUTABLE=$(shell command -v $(NATIVE_PYTHON)) > /dev/null
	cmake --build build/native
	cp build/native/_native*.so src/finback/
