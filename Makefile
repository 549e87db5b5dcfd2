# make help lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .tmp/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

BUF := github.com/bufbuild/buf/cmd/buf@v1.75.0
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT := mvdan.cc/gofumpt@v0.12.0

# What the tests need of the system, as command:package, and what the demonstration does.
DEMO_NEEDS := gcc:gcc iptables-restore:iptables
NEEDS := gcc:gcc make:make ip:iproute2 iptables-restore:iptables conntrack:conntrack nft:nftables ping:iputils-ping tc:iproute2 systemd-analyze:systemd docker-compose:docker-compose dockerd:docker.io git:git ssh:openssh-client zsh:zsh fish:fish

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/' | expand -t 18

.PHONY: build
build: ## build every command into bin/
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...
	@if overlay=$$(cmd/fulmar-tls/overlay); then \
		CGO_ENABLED=0 go build -trimpath -overlay "$$overlay" -o bin/ ./cmd/fulmar-tls; \
	else \
		echo "bin/fulmar-tls reads certificates of up to 256 KB only: not those in which albatross's own client puts a larger image" >&2; \
	fi

.PHONY: install
install: build ## install commands, systemd units and the group of the host's sockets below DESTDIR
	install -d $(DESTDIR)/usr/bin $(DESTDIR)/usr/lib/systemd/system $(DESTDIR)/usr/lib/sysusers.d $(DESTDIR)/etc/fulmar
	install bin/fulmar bin/fulmar-spt bin/fulmar-hvt bin/fulmar-tls $(DESTDIR)/usr/bin/
	for s in builder ipam vmm monitor nat gc host; do install bin/$$s $(DESTDIR)/usr/bin/fulmar-$$s; done
	install -m 644 deploy/systemd/*.service deploy/systemd/*.socket $(DESTDIR)/usr/lib/systemd/system/
	install -m 644 deploy/systemd/fulmar.sysusers $(DESTDIR)/usr/lib/sysusers.d/fulmar.conf

.PHONY: demo
demo: root demo-needs build ## deploy, update under load, roll back and retire a real unikernel, in namespaces of its own
	CGO_ENABLED=0 go build -trimpath -o bin/ ./e2e/demo
	./bin/demo

.PHONY: test
test: root needs ## run every test, against real parts
	go test $(TESTFLAGS) -race -shuffle=on -timeout 15m $$(go list ./... | grep -v '^fulmar/model$$')
	go test $(TESTFLAGS) -shuffle=on -timeout 15m ./model # one worker at a time: nothing for the race detector, and much to run

.PHONY: bench
bench: root needs build ## measure what docs/PERFORMANCE.md says
	CGO_ENABLED=0 go build -trimpath -o bin/ ./e2e/bench
	./bin/bench $(BENCH)
	./bin/bench --firewall-backend nftables $(BENCH)
	go test -run '^$$' -bench . -benchtime 1s ./services/host | grep -E '^(Benchmark|FAIL|--- FAIL|panic)'
	go test -run '^$$' -bench CacheHit -benchtime 200x ./services/builder | grep -E '^(Benchmark|FAIL|--- FAIL|panic)'
	go test -run '^$$' -bench Extract -benchtime 20x ./services/builder/docker | grep -E '^(Benchmark|FAIL|--- FAIL|panic)'

.PHONY: fuzz
fuzz: ## run every fuzz target for 30 s, or FUZZTIME
	@for file in $$(git grep -lE '^func Fuzz' -- '*_test.go'); do \
		for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9]+)\(.*/\1/p' $$file); do \
			echo "$$file $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $${FUZZTIME:-30s} ./$$(dirname $$file); \
		done; \
	done

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/buf $(BIN)/gofumpt ## look at the code: vet, golangci-lint, gofumpt, buf
	go vet ./...
	golangci-lint run
	test -z "$$(gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$'))" || { gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$'); exit 1; }
	buf lint
	if git rev-parse -q --verify HEAD~1 >/dev/null && git ls-tree -r HEAD~1 --name-only | grep -q '^buf.yaml$$'; then buf breaking --against '.git#ref=HEAD~1'; fi
	$(MAKE) checkgenerate

.PHONY: fmt
fmt: $(BIN)/gofumpt ## format the code
	gofumpt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')

.PHONY: generate
generate: $(BIN)/buf $(BIN)/protoc-gen-go ## make the Go code of the messages
	buf generate

.PHONY: checkgenerate
checkgenerate: generate ## see that generated code is up to date
	git diff --exit-code -- messages/fulmar

.PHONY: check-deploy
check-deploy: ## check the systemd units and the compose file
	go test -count=1 ./deploy/...

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root: it makes network namespaces, taps, control groups and firewall rules of its own (try: sudo make $(MAKECMDGOALS))" >&2; exit 1; }

.PHONY: needs
needs: ## install what the tests need, with apt; a service that comes with it, such as Docker, is not started
	@$(call install,$(NEEDS))

.PHONY: demo-needs
demo-needs:
	@$(call install,$(DEMO_NEEDS))

define install
	missing=; for n in $(1); do command -v $${n%%:*} >/dev/null || missing="$$missing $${n##*:}"; done; \
	if [ -n "$$missing" ]; then \
		command -v apt-get >/dev/null || { echo "install these first:$$missing" >&2; exit 1; }; \
		policy=/usr/sbin/policy-rc.d; [ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; trap "rm $$policy" EXIT; }; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi; \
	command -v go >/dev/null || { echo "install Go 1.26 or newer first: https://go.dev/doc/install" >&2; exit 1; }
endef

$(BIN)/golangci-lint: Makefile
	GOBIN=$(CURDIR)/$(BIN) go install $(GOLANGCI) && touch $@
$(BIN)/buf: Makefile
	GOBIN=$(CURDIR)/$(BIN) go install $(BUF) && touch $@
$(BIN)/protoc-gen-go: Makefile
	GOBIN=$(CURDIR)/$(BIN) go install $(PROTOC_GEN_GO) && touch $@
$(BIN)/gofumpt: Makefile
	GOBIN=$(CURDIR)/$(BIN) go install $(GOFUMPT) && touch $@
