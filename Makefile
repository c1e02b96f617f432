# make        sets everything up and runs the main job: the compression trade-off at f = 8
# make test   sets everything up and passes the tests
# make help   lists the rest

TIER ?= laptop
DATA ?= scenes
SEED ?= 0
REG  ?= kl
FS   ?= 1,2,4,8,16,32
CORES ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(firstword $(foreach py,python3.13 python3.12 python3.11 python3 python,$(shell \
	$(py) -c 'import sys; print("$(py)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))

export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUNBUFFERED := 1
unexport DATA  # exporting expands it: a folder's name is no text of make

.DELETE_ON_ERROR:
.PHONY: run test lab study smoke lint check-long readme clean help

run: $(VENV)/ready  ## set up, then notebooks/04_tradeoff.ipynb at f = 8 on the embedded pictures
	@mkdir -p results/executed
	$(BIN)/papermill --no-progress-bar --log-output notebooks/04_tradeoff.ipynb results/executed/04_tradeoff_f8.ipynb -p f 8

test: $(VENV)/ready  ## set up, then the tests
	$(BIN)/python -m pytest -n $(CORES) --maxprocesses 4 --dist loadgroup --no-loadscope-reorder $(ARGS)

lab: $(VENV)/ready  ## set up, then JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

study: $(VENV)/ready-sweep  ## all six f, one papermill run each: TIER=laptop DATA=scenes SEED=0 REG=kl FS=4,8 CORES=all
	LDMLAB_STUDY_DATA=$(call quoted,DATA) $(BIN)/snakemake --cores $(CORES) \
		--config tier=$(call quoted,TIER) seed=$(call quoted,SEED) reg=$(call quoted,REG) fs=$(call quoted,FS) \
		--scheduler greedy --rerun-incomplete --nolock --keep-going --show-failed-logs --quiet rules $(ARGS)

smoke: $(VENV)/ready $(NOTEBOOKS:notebooks/%.ipynb=smoke-%)  ## every notebook once at the smallest tier

smoke-%: notebooks/%.ipynb $(VENV)/ready
	@mkdir -p results/executed/smoke
	$(BIN)/papermill --no-progress-bar --log-output $< results/executed/smoke/$*.ipynb -p tier smoke

lint: $(VENV)/ready  ## style, types, and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

check-long: lint  ## lint, then the tests that take too long for `make test`
	$(BIN)/python -m pytest -m long $(ARGS)

readme: $(VENV)/ready  ## write the README's table of notebooks from ldmlab/study/config/notebooks.py
	$(BIN)/python -m ldmlab.study.config.readme

clean:  ## remove checkpoints, caches and executed notebooks (records, figures and .venv stay)
	rm -rf results/runs results/executed .snakemake .pytest_cache .ruff_cache .import_linter_cache .mypy_cache build

help:
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 10

# Two environments in one: what the notebooks and tests need, and Snakemake on top of it.
$(VENV)/ready: pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet uv || echo "no uv here: pip installs, which takes longer"
	$(call install,.[test])
	@touch $@

$(VENV)/ready-sweep: $(VENV)/ready
	$(call install,.[test$(,)sweep])
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "ldmlab needs Python 3.11 or newer, and none is on the PATH." \
		"Name one: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu, install its -venv package"; exit 1; }

, := ,
# The value of a variable as it was given, quoted for the shell, and nothing in it expanded.
quoted = '$(subst ','\'',$(value $(1)))'
# uv where it is there, pip where uv is not or cannot reach a registry that pip is set up for.
install = @{ test -x $(BIN)/uv && $(BIN)/uv pip install --python $(BIN)/python -e "$(1)"; } \
	|| $(BIN)/python -m pip install -e "$(1)"
