# `make demo`: set up and see the main job run.   `make test`: set up and pass the tests.   `make check`: lint and types.
# `make docs`: build the documentation site into site/.
VENV := .venv
PY := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1
# Python keeps what it has compiled: otherwise each process of a test would compile the project again.
unexport PYTHONDONTWRITEBYTECODE
SYSTEM_PACKAGES := slurm-wlm slurmctld slurmd munge iproute2 ffmpeg libopencv-dev libturbojpeg0-dev pkg-config \
	prometheus chromium

.PHONY: demo test test-fast check docs azurite mutants lock audit sbom system-packages clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	@$(PY) -m motionmae demo

# A worker for each core, and one that mostly waits for Slurm.
test: $(VENV)/.test system-packages azurite
	@echo "== tests"
	@$(PY) -m pytest --numprocesses 3 --dist loadgroup --no-loadscope-reorder

# For daily work: two thirds of the tests, in less than two minutes on two cores.
test-fast: $(VENV)/.test
	@$(PY) -m pytest --fast --numprocesses 2 --dist loadgroup --no-loadscope-reorder

check: $(VENV)/.test
	@echo "== lint, format, types, imports, names"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) .ci/check_words.py

docs: $(VENV)/.docs
	@$(PY) docs/reference/generate.py
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo "== open site/index.html"

# Each stamp is a set of extras; pins come from constraints.txt, ranges from pyproject.toml. The tests' packages come from
# requirements.lock, with hashes, where it holds the files for this Python and machine.
$(VENV)/.test: requirements.lock
LOCKED := grep -q "Python $$($(PY) -c 'import platform as p, sys; print("%d.%d on %s %s." % (*sys.version_info[:2], sys.platform, p.machine()))')" requirements.lock
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check
$(VENV)/.%: pyproject.toml constraints.txt
	@echo "== installing the packages of '$*' into $(VENV) (a few minutes the first time)"
	@test -x $(PY) || python3 -m venv $(VENV)
	@if [ $* = test ] && $(LOCKED); then \
		$(PIP) --no-deps --require-hashes --requirement requirements.lock && $(PIP) --no-deps --editable .; \
	else $(PIP) --constraint constraints.txt --editable '.[$*]'; fi
	@touch $@

$(VENV)/.test: | system-packages  # pip builds FFCV against some of them

# What the tests run for real: a Slurm cluster in network namespaces, ffmpeg as the judge of our decoding, Prometheus, a
# browser, and FFCV's libraries (without them FFCV cannot be built: see docs/data/ffcv.md).
system-packages:
	@missing=$$(for p in $(SYSTEM_PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "== installing system packages:" $$missing; \
		apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "== not installed (apt-get install" $$missing "as root): tests skip, and FFCV cannot be built without its libraries"; fi

# The server that the tests of az:// URLs ask. It comes from npm; without npm these tests skip.
AZURITE := $(VENV)/azurite
azurite: $(VENV)/.test
	@if [ ! -x $(AZURITE)/node_modules/.bin/azurite-blob ] && command -v npm >/dev/null; then \
		echo "== installing Azurite into $(AZURITE)"; \
		npm install --silent --no-fund --no-audit --prefix $(AZURITE) azurite@3.37.0; fi

# Which small faults in the modules named in .ci/mutants.py do their tests notice? Half an hour; not in CI.
mutants: $(VENV)/.test $(VENV)/.mutants
	@$(PY) .ci/mutants.py

# The file that `make test` installs from, after a change of pyproject.toml or constraints.txt.
lock: $(VENV)/.test
	@$(PY) .ci/lock.py

# Known vulnerabilities of the packages in requirements.lock; asks a public database, so CI does not.
audit: $(VENV)/.audit
	@$(PY) -m pip_audit --disable-pip --requirement requirements.lock

# Software bill of materials of the wheel: every package that it needs, with version, licence and sha256.
sbom: $(VENV)/.test
	@mkdir -p dist
	@$(PY) .ci/sbom.py dist/motionmae.cdx.json

# Only an environment that this file made; videos, shards and runs of the demo are the user's.
clean:
	@if [ -f .venv/.test ] || [ -f .venv/.demo ]; then rm -rf .venv && echo "== removed .venv"; fi
	@echo "== kept data/demo and runs/demo, the data and the run of the demo"
