# mailgate for those who work on it. A fresh machine needs python3 (3.11 or newer), python3-venv, make and
# ca-certificates; every target sets up what it needs.
#
#   make run     a gateway on loopback ports, nothing else needed; prints how to send a first mail
#   make test    everything: types, style, unit, wire, daemon, and the peers that are installed
#   make check   before each commit: types, style, house rules, unit tests
#   make spec    which acceptance rows are covered, and what the others wait for
#   make bench   side by side with other servers (root, Postfix, gcc)
#   make chaos   1,000 crashes of a daemon under load (gcc; CHAOS_POINTS=1000 CHAOS_SEED=1 CHAOS_LANES=3; some 20 minutes)
#   make soak    one daemon under every kind of load for a long time (SOAK_MINUTES=30 SOAK_SEED=1 SOAK_MESSAGES=1500)
#   make fuzz    the protocol cores against random octets (FUZZ_SECONDS=60)
#   make doc     write doc/configuration.md and doc/mailgate.schema.json anew from the schema, doc/durability.md from
#                the crash table and the figures of the last full run
#   make venv    only the virtual environment, in .venv, from requirements/lock.txt
#   make deb     the Debian package, into dist/ (debhelper, dh-virtualenv)
#   make clean   remove what was built; var/ with its queue and mailboxes stays

PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 60
PYTEST_ARGS ?=
export CHAOS_POINTS CHAOS_SEED CHAOS_LANES CHAOS_KEEP SOAK_MINUTES SOAK_SEED SOAK_MESSAGES

# Not an editable install: that would hide the twistd plugin.
export PYTHONPATH := $(CURDIR)
export MAILGATE_HOME := $(CURDIR)

.PHONY: venv run test check spec bench chaos soak fuzz doc deb clean

venv: .venv/locked .venv/programs

.venv/locked: requirements/lock.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mailgate needs Python 3.11 or newer")'
	@test -x $(BIN)/pip || /usr/bin/env $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-input --prefer-binary --use-pep517 --no-deps -r requirements/lock.txt
	$(BIN)/pip check
	@cp requirements/lock.txt $@

.venv/programs: .venv/locked Makefile
	@for program in mailgate:mailgate.admin.main mailq:mailgate.admin.mailq sendmail:mailgate.admin.sendmail.main; do \
	    printf '#!/bin/sh\nMAILGATE_HOME="$${MAILGATE_HOME:-%s}" PYTHONPATH="%s" exec "%s/.venv/bin/python" -m %s "$$@"\n' \
	        "$(CURDIR)" "$(CURDIR)" "$(CURDIR)" "$${program#*:}" > $(BIN)/$${program%%:*} && chmod 755 $(BIN)/$${program%%:*} || exit 1; \
	done
	@touch $@

run: venv
	@mkdir -p var/tls var/mail
	@test -s var/tls/cert.pem || $(BIN)/python -m mailgate.net.selfsigned var/tls/cert.pem var/tls/key.pem
	@cat etc/mailgate-dev.txt
	@exec $(BIN)/twistd -n --pidfile=var/twistd.pid mailgate --config etc/mailgate-dev.toml

check: venv
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q test/house test/unit $(PYTEST_ARGS)

test: venv
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(PYTEST_ARGS)

spec: venv
	@$(BIN)/python test/house/ledger.py

bench: venv
	$(BIN)/python bench/bench.py $(BENCH_ARGS)

chaos: venv
	PYTHONPATH=$(CURDIR):$(CURDIR)/test $(BIN)/python -m crash.chaos $(if $(CHAOS_FIGURES),--figures $(CHAOS_FIGURES))

soak: venv
	PYTHONPATH=$(CURDIR):$(CURDIR)/test $(BIN)/python -m soak.soak

fuzz: venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-input --only-binary :all: --no-deps -r requirements/fuzz.txt \
	    || echo "fuzz: atheris cannot be had for this Python; the seeded tests in test/fuzz run instead"
	$(BIN)/python test/fuzz/run.py --seconds $(FUZZ_SECONDS)

doc: venv
	$(BIN)/python -m mailgate.config.explain > doc/configuration.md.new
	@mv doc/configuration.md.new doc/configuration.md
	$(BIN)/python -m mailgate.config.jsonschema > doc/mailgate.schema.json.new
	@mv doc/mailgate.schema.json.new doc/mailgate.schema.json
	PYTHONPATH=$(CURDIR):$(CURDIR)/test $(BIN)/python -m crash.report > doc/durability.md.new
	@mv doc/durability.md.new doc/durability.md

# Built in a copy, because dpkg-buildpackage puts what it makes beside the source. Only the system's own tools are used.
deb:
	@rm -rf build/deb
	@mkdir -p build/deb/mailgate dist
	@cp -R debian doc etc mailgate requirements twisted *.md MANIFEST.in pyproject.toml setup.cfg build/deb/mailgate/
	@find build/deb -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -f build/deb/mailgate/twisted/plugins/dropin.cache
	cd build/deb/mailgate && env -u PYTHONPATH -u MAILGATE_HOME PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	    dpkg-buildpackage --build=binary --unsigned-source --unsigned-changes
	@mv build/deb/mailgate_* dist/
	@ls -l dist/*.deb

clean:
	rm -rf .venv build dist *.egg-info bench/results .pytest_cache .mypy_cache .ruff_cache .hypothesis twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
