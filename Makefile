# Sets up what the commands need, and nothing else: each of them also works by hand.
STACK ?= dev
PYTHON ?= python3
STARTED := $(shell date +%s)

venv := .venv
python := $(venv)/bin/python
ready := $(venv)/.requirements

.DEFAULT_GOAL := help
.PHONY: help up preview drift plan rehearse probe doctor console secrets rotate backup restore metrics scrape-config destroy test lint web bench

help:
	@echo 'make up        make or update the stack, and prove that an insert reaches a subscriber'
	@echo 'make preview   show what an update would change'
	@echo 'make drift     fail, with what differs, unless the world is as declared'
	@echo 'make plan      print what the program declares; needs no Docker, no CLI and no network'
	@echo 'make rehearse  try who may see and change which rows; needs no Docker, no CLI and no network'
	@echo 'make probe     prove again that an insert reaches a subscriber'
	@echo 'make doctor    say what is wrong with a running stack, with its cause and its cure'
	@echo 'make console   open a page that shows the stack live, until ended'
	@echo 'make secrets   generate the secrets that a stack lacks'
	@echo 'make rotate    give a secret another value everywhere: make rotate SECRET=jwt'
	@echo 'make backup    write the application'"'"'s schemas and rows into a file (TO=FILE)'
	@echo 'make restore   put a backup in the place of what the database holds (FILE=…, REPLACE=yes)'
	@echo 'make metrics   serve figures of Postgres to Prometheus, on loopback, until ended'
	@echo 'make scrape-config  print what Prometheus is told about the stack'
	@echo 'make destroy   remove the stack'
	@echo 'make web       check, test and build the console'"'"'s page; needs Node 20.19 or newer'
	@echo 'make test, make lint, make bench'
	@echo 'STACK=name picks the stack; it is $(STACK)'

up: $(ready)
	@$(python) -m deploy up --stack $(STACK) --started $(STARTED)

preview drift probe secrets scrape-config destroy: $(ready)
	@$(python) -m deploy $@ --stack $(STACK)

rotate: $(ready)
	@$(python) -m deploy rotate --stack $(STACK) $(SECRET)

metrics: $(ready)
	@$(python) -m doctor metrics --stack $(STACK)

backup: $(ready)
	@$(python) -m deploy backup --stack $(STACK) $(if $(TO),--to '$(TO)')

restore: $(ready)
	@test -n '$(FILE)' || { echo 'name the backup: make restore FILE=backups/…' >&2; exit 1; }
	@$(python) -m deploy restore --stack $(STACK) $(if $(filter yes,$(REPLACE)),--replace) '$(FILE)'

plan: $(ready)
	@$(python) -m plan --stack $(STACK)

rehearse: $(ready)
	@$(python) -m rehearsal --stack $(STACK) $(if $(DSN),--dsn "$$DSN")

doctor: $(ready)
	@$(python) -m doctor --stack $(STACK)

console: $(ready)
	@$(python) -m doctor console --stack $(STACK)

test: $(ready)
	@$(python) -m pytest

lint: $(ready)
	@$(venv)/bin/ruff check .
	@$(venv)/bin/ruff format --check .
	@$(venv)/bin/mypy

web:
	@cd web && npm ci --no-audit --no-fund && npm run --silent check && npm run --silent test && npm run --silent build

bench: $(ready)
	@$(python) -m bench

$(ready): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: install it, or name it with PYTHON=/path/to/python3' >&2; exit 1; }
	@test -x $(python) || $(PYTHON) -m venv $(venv) || \
	  { echo 'no virtual environment can be made: install the package python3-venv' >&2; exit 1; }
	@$(python) -m pip install --quiet --disable-pip-version-check -r requirements.txt || \
	  { echo 'requirements.txt cannot be installed: pip said why above' >&2; exit 1; }
	@touch $@
