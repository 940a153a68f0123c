# The same verbs for people and CI. Everything installs into .venv; nothing else on the machine is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
VENV4 := .venv-transformers4
PIP := -m pip install --quiet --disable-pip-version-check
# Tests take one thread each: as many processes as cores. Files stay whole, so that what they share is made once.
JOBS ?= 2
PYTEST := pytest -n $(JOBS) --dist loadfile

.PHONY: setup environments demo test test-full test-transformers4 lint docs bench clean

setup: $(VENV)/.done

environments: $(VENV)/.done $(VENV4)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV4)/.done: pyproject.toml constraints-transformers4.txt
	$(PYTHON) -m venv $(VENV4)
	$(VENV4)/bin/python $(PIP) -c constraints-transformers4.txt -e '.[optimum,openvino,train,test]'
	@touch $@

demo: setup
	$(VENV)/bin/nopad demo

test: setup
	$(VENV)/bin/$(PYTEST)

# Everything: the slow tests too, under both transformers.
test-full: setup $(VENV4)/.done
	$(VENV)/bin/$(PYTEST) -m 'not gpu'
	$(VENV4)/bin/$(PYTEST) -m 'not gpu' tests/model tests/export tests/runtime

# What depends on transformers, against its line 4.57, and optimum-onnx.
test-transformers4: $(VENV4)/.done
	$(VENV4)/bin/$(PYTEST) tests/model/checkpoint tests/model/test_encoder.py tests/export/test_bundle.py tests/export/commands/test_parity.py tests/runtime/test_decode.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p nopad
	$(VENV)/bin/hadolint deploy/Dockerfile

# The documentation as a site, in build/site. A link or an anchor that leads nowhere fails.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The embedded model beside every competitor; or BENCH="bundle/ --reference checkpoint/ ...".
BENCH ?=
bench: $(VENV4)/.done
	$(VENV4)/bin/python $(PIP) -c constraints-transformers4.txt -e '.[bench]'
	$(VENV4)/bin/nopad bench $(BENCH) --output build/bench/results

clean:
	rm -rf $(VENV) $(VENV4) build dist *.egg-info
