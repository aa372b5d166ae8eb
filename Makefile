# Two Go modules: the root (server, SDK, CLI) and server/embedded, which links OpenFGA.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c

MODULES    := . server/embedded
GO_TOOL    := go tool -modfile=$(CURDIR)/tools/go.mod
BUF        := tools/node_modules/.bin/buf
GO_FILES    = $$(git ls-files -co --exclude-standard --deduplicate '*.go')
E2E_NODE   := $(patsubst %/package-lock.json,%,$(wildcard server/embedded/e2e/node/package-lock.json))
# The race detector watches Deputy and what shares Go memory with it. It does not watch SQLite: that is C translated
# to Go, which works on memory of its own outside of Go's heap, where the detector has no shadow. Instrumented, it took
# half of the processor time of the tests. The driver above it is watched.
UNWATCHED  := modernc.org/sqlite/lib modernc.org/libc/... modernc.org/memory
RACE       := -race $(foreach p,$(UNWATCHED),-gcflags=$(p)=-race=false)
# make lint vets. At least three packages at a time: many tests wait for servers and for time, not for a processor.
PACKAGES   := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 3 ? n : 3)))
TEST_FLAGS := $(RACE) -vet=off -p $(PACKAGES) -timeout 20m
# The packages that take longest, so that they start first and none of them runs alone at the end.
LONGEST    := ./server/internal/exchange ./server ./server/internal/ledger
# The tools that are not the product: load generator, simulator, filler.
TOOLS      := /(loadtest|server/fill)(/|$$)
BIN        ?= bin
# The version of a release, such as v0.1.0. Without it, the go command derives one from the commit.
VERSION    ?=
LDFLAGS     = $(if $(VERSION),-X deputy.example/deputy/internal/version.release=$(VERSION))
FUZZTIME   ?= 30s

# $(call each-module,COMMAND) runs COMMAND in every module, and stops at the first failure.
each-module = for dir in $(MODULES); do (cd $$dir && $(1)) || exit; done

.DEFAULT_GOAL := help
.PHONY: help build run test test-product test-embedded test-tools quick deps lint format generate generate-check vuln breaking bench loadtest campaign mutants fuzz clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build: ## deputyd and deputy into bin/; VERSION=v0.1.0 sets what --version prints
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./server/cmd/deputyd ./client/cmd/deputy

run: ## build and start the embedded default; ARGS="..." are passed to it
	@tools/build-embedded bin/deputy-embedded '$(LDFLAGS)'
	@go build -ldflags '$(LDFLAGS)' -o bin/deputy ./client/cmd/deputy # for the commands that the demo prints
	@exec bin/deputy-embedded $(ARGS)

test: deps ## everything, with the race detector; installs or names what is missing
	@$(MAKE) --no-print-directory -k -j2 test-embedded test-product test-tools

test-product: deps ## the part of make test for server, SDK and command line
	go test $(TEST_FLAGS) $(LONGEST) $$(go list ./... | grep -vE '$(TOOLS)')

test-embedded: deps ## the part of make test for the embedded default and whole deployments
	cd server/embedded && go test $(TEST_FLAGS) ./...

test-tools: deps ## the part of make test for load generator, simulator and filler
	go test $(TEST_FLAGS) $$(go list ./... | grep -E '$(TOOLS)')

quick: ## the packages whose tests need no server, without the race detector; make test runs everything
	$(call each-module,go test -vet=off $$($(CURDIR)/tools/quick-packages | grep -vE '$(TOOLS)'))

deps: $(if $(E2E_NODE),$(E2E_NODE)/node_modules/.package-lock.json) ## install what the tests need besides Go
	@tools/install-test-deps

lint: $(BUF) ## formatting, vet, staticcheck, protobuf style
	@unformatted=$$(gofmt -l $(GO_FILES)); \
	if [[ -n $$unformatted ]]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	$(call each-module,go vet ./...)
	$(call each-module,$(GO_TOOL) staticcheck $$(go list ./... | grep -v '/gen/')) # generated code has no package comment
	$(BUF) lint
	$(BUF) format --diff --exit-code

format: $(BUF) ## gofmt and buf format, in place
	gofmt -w $(GO_FILES)
	$(BUF) format --write

generate: $(BUF) ## gen/ from proto/
	$(BUF) generate

generate-check: generate ## fails if gen/ differs from what proto/ generates
	git diff --exit-code -- proto gen
	@untracked=$$(git ls-files --others --exclude-standard -- gen); \
	if [[ -n $$untracked ]]; then echo "generated but not committed:"; echo "$$untracked"; exit 1; fi

vuln: ## known vulnerabilities in called code; a warning if their database cannot be reached
	DIRS='$(MODULES)' tools/vuln $(GO_TOOL) govulncheck ./...

breaking: $(BUF) ## the API against the last release
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null || true); \
	if [[ -z $$tag ]]; then echo "No release yet: there is no API to compare with."; \
	else $(BUF) breaking --against ".git#tag=$$tag"; fi

bench: deps ## benchmarks with allocations
	$(call each-module,go test -run '^$$' -bench . -benchmem -timeout 60m ./...)

loadtest: deps ## the cost of an exchange, compared with its goals; ARGS="scale", ARGS="run --no-bounds", …
	go run ./loadtest $(or $(ARGS),run)

campaign: deps ## the tests with all rounds; DEPUTY_SEED=n chooses the random numbers
	@echo "DEPUTY_SEED=$${DEPUTY_SEED:-1}"
	$(call each-module,DEPUTY_CAMPAIGN=full go test $(RACE) -count=1 -timeout 120m ./...)

mutants: deps ## one protection removed at a time: its test must fail; ARGS="-run horizon"
	@go run -C tools ./mutants $(ARGS)

fuzz: ## every fuzz target for FUZZTIME (default 30s)
	@tools/fuzz $(FUZZTIME)

clean: ## remove what was built or installed here; not the data in deputy-data
	rm -rf bin tools/node_modules server/embedded/e2e/node/node_modules

# npm writes .package-lock.json last, so a broken install is repeated.
%/node_modules/.package-lock.json: %/package-lock.json
	@tools/install-test-deps
	cd $* && npm ci --ignore-scripts --no-audit --no-fund

$(BUF): tools/node_modules/.package-lock.json ;
