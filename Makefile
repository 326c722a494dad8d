# The front door. `make help` lists the verbs; behind each stands `nbs VERB --help`.
.DEFAULT_GOAL := help
.PHONY: help run doctor test check cover serve cycle lab ui study prove verify review bench docs clean lib
READY := .venv/.ready
NBS := .venv/bin/nbs
LIBRARY := 'notebooks/lib/*.ipynb' 'notebooks/own/*.ipynb'
# Not empty in the template, whose own tests need more than those of a project. (A comment behind it would add a blank, which is not empty.)
TEMPLATE := $(wildcard copier.yml)

help: ## What there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-7s %s\n", $$1, $$2}' Makefile

run: $(READY) ## From the table to a model with reports (SAMPLE=0.05: on a part of the rows)
	@$(NBS) run $(if $(SAMPLE),--sample $(SAMPLE))

doctor: $(READY) ## What is wrong with the table, before anything is learned (TABLE=sales.csv TARGET=again: another one)
	@$(NBS) doctor $(TABLE) $(if $(TARGET),--target '$(TARGET)')

test: $(READY) ## Every check and test
	@$(if $(TEMPLATE),.ci/apt chromium nginx openjdk-17-jre-headless postgresql prometheus redis-server wrk)
	@$(if $(TEMPLATE),.ci/env feast & .ci/env torchserve & .ci/env ray & .ci/env s3 &) .venv/bin/pytest $(COVER); status=$$?; wait; exit $$status

check: $(READY) ## What to run after each edit: format, lint, types, notebooks and library, examples of what changed
	@.ci/check

cover: ## Every check and test, and which lines and branches none of them reaches
	@$(MAKE) --no-print-directory test COVER="--cov=nbs_lib --cov-branch --cov-report=term:skip-covered"

serve: $(READY) ## The champion answers over HTTP
	@$(NBS) serve

cycle: $(READY) ## Watch what was answered, decide, learn again, and promote behind a gate
	@$(NBS) cycle || case $$? in 10|20) ;; *) exit 1 ;; esac # drift to watch, or a challenger was judged

lab: $(READY) ## JupyterLab on the notebooks
	@$(NBS) lab

ui: $(READY) ## The reports and MLflow in a browser
	@$(NBS) ui

study: $(READY) ## The longer experiments of notebooks/studies
	@$(NBS) study

prove: $(READY) ## Run three times, once from a fresh clone, and compare every output
	@$(NBS) prove $(if $(SAMPLE),--sample $(SAMPLE))

verify: $(READY) ## Prove that dvc.lock is what this code makes: hashes, and a tenth of a run again (SHARE=1: all of it)
	@$(NBS) verify $(if $(SHARE),--share $(SHARE))

review: $(READY) ## What this branch changes, as one comment: cells, parameters, metrics, gate, pages (BASE=…: beside another commit)
	@$(NBS) review $(BASE) $(if $(OUT),--out $(OUT))

bench: $(READY) ## What the pipeline costs beside a plain script (WHAT=features, serve, …: what those cost)
	@$(if $(filter features,$(WHAT)),.ci/env bench)
	@$(if $(filter drift,$(WHAT)),.ci/env nannyml whylogs)
	@$(if $(filter tables alarms quality,$(WHAT)),.ci/env tables)
	@$(if $(filter quality,$(WHAT)),.ci/env quality)
	@$(if $(filter score,$(WHAT)),.ci/env ray)
	@$(if $(filter serve scaling start load soak,$(WHAT)),.ci/apt wrk)
	@$(if $(filter nodes,$(WHAT)),.ci/apt nginx)
	@$(if $(filter serve,$(WHAT)),.ci/env bentoml litserve mlserver ray)
	@$(if $(filter load,$(WHAT)),.ci/env mlserver)
	@$(NBS) bench $(WHAT)

docs: $(READY) ## The documentation, from the notebooks: site/index.html opens without a server
	@$(NBS) docs

lib: $(READY) ## After editing notebooks/lib: export nbs_lib, tidy the notebooks, store what they show
	@.venv/bin/ruff format notebooks > /dev/null
	@.venv/bin/nbdev-clean
	@.venv/bin/python .ci/export
	@$(NBS) deps
	@$(NBS) notebooks --index
	@changed="$$(git diff --name-only --diff-filter=d HEAD -- $(LIBRARY); git ls-files --others --exclude-standard -- $(LIBRARY))"; \
	[ -z "$$changed" ] || $(NBS) notebooks --store $$changed

clean: ## Remove everything that was made, the environment and MLflow's records included
	rm -rf .venv .nbs .failed .dvc/cache .dvc/tmp data/snapshot.parquet data/training_set.parquet data/tables data/features data/source.json data/fetched models served mlruns mlflow.db* reports/*.html site .coverage *.egg-info

# The environment: pinned by the lock file. Byte-code is kept where something is imported for the first time: it halves every kernel start. uv takes a Python that is here, or brings one;
# that of an activated .venv does not count, which is set aside while the new one is made.
# Of the user's settings of pip, only where packages come from counts.
PYTHON := $(shell sed -n 's/^requires-python = "\(.*\)"/\1/p' pyproject.toml)
UV := $(if $(shell found=$$(command -v uv) && [ "$$(cd "$${found%/*}" && pwd -P)" != "$$(cd .venv/bin 2>/dev/null && pwd -P)" ] && echo here),uv,.nbs/uv/bin/uv)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export PIP_USER := 0
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX UV_SYSTEM_PYTHON
NO_PYTHON = { echo "make: Python $(PYTHON) with its venv module is needed, and $$(python3 --version 2>/dev/null || echo no Python) is here: apt-get install python3 python3-venv, or go online, where uv brings one" >&2; exit 1; }

$(READY): requirements.lock pyproject.toml | $(filter-out uv,$(UV))
	@echo "setting up .venv (once; half a minute)"
	@said=$$($(UV) venv --quiet --clear --python "$(PYTHON)" .nbs/venv 2>&1) || { echo "$$said" | sed '/^$$/d;s/^/uv: /' >&2; $(NO_PYTHON); }
	@rm -rf .nbs/venv; [ ! -d .venv ] || mv .venv .nbs/venv # which stays until the new one is whole
	@$(UV) venv --quiet --python "$(PYTHON)" .venv && \
	$(UV) pip install --quiet --python .venv -r requirements.lock && \
	$(UV) pip install --quiet --python .venv --no-deps -e . || \
	{ rm -rf .venv; [ ! -d .nbs/venv ] || mv .nbs/venv .venv; echo "make: .venv can't be set up, for the reason above" >&2; exit 1; }
	@rm -rf .nbs/venv
	@[ -e .git ] || [ -f README.md ] || [ ! -f .copier-answers.yml ] || $(NBS) begin # what plain `copier copy` has written
	@touch $(READY)

.nbs/uv/bin/uv:
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do $$python -m venv --clear .nbs/uv >/dev/null 2>&1 && exit; done; $(NO_PYTHON)
	@.nbs/uv/bin/pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements.lock)
