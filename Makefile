# make run     set everything up and run a container in its own virtual machine
# make test    what a change is tested by; FILTER=word for the tests whose names contain it
# make test-all   and every other test there is: those that take minutes, both containerds where one does for a change
# make fuzz    fuzz for longer: SECONDS=600 each, TARGET=blk
# make lint    formatting and lints
# make bench   measure against runc, write docs/benchmarks.*; PART=inside for what programs do in a container;
#              ON=host on this host's own KVM, ON=emulated in the lab (else the host where it runs guests)
# make conformance   Kubernetes' suite for container runtimes on ours and on runc, write docs/compatibility.md
# make clean-lab   take the lab down and forget what was cached

XTASK := cargo xtask
CACHE := $(or $(KATA_LIKE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kata-like)

.PHONY: run test test-all fuzz lint bench conformance setup setup-tests clean-lab

run: setup
	@$(XTASK) demo

test: setup-tests
	@$(XTASK) test $(FILTER)

test-all: setup-tests
	@$(XTASK) test --all $(FILTER)

fuzz: setup
	@$(XTASK) fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(TARGET)

lint: setup
	@$(XTASK) lint

bench: setup-tests
	@$(if $(ON),KATA_LIKE_GROUND=$(ON)) $(XTASK) bench $(PART)

conformance: setup-tests
	@$(XTASK) conformance

setup:
	@bash xtask/setup.sh

setup-tests:
	@bash xtask/setup.sh tests

clean-lab:
	@$(XTASK) lab down
	rm -rf "$(CACHE)"
