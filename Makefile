# warmcore: crash dumps taken with firmware's help. `make help` lists targets.

ARCH    ?= amd64
BUILD   := build/$(ARCH)
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)
GO      := go
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# What Debian 12 has and a build, or a story in QEMU, needs.
PACKAGES := qemu-system-x86 seabios binutils gcc make bc bison flex cpio kmod xz-utils zstd rsync \
	libelf-dev libssl-dev libc6-dev linux-source-6.12 e2fsprogs btrfs-progs dosfstools xfsprogs fdisk dpkg-dev \
	grub-common grub2-common \
	makedumpfile crash systemd debootstrap groff-base \
	qemu-system-arm qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross u-boot-qemu u-boot-tools device-tree-compiler dt-schema

# Of these only the programs are wanted. To install them would change how this
# machine boots: systemd-boot puts itself into the EFI system partition.
UNPACKED := systemd-boot
UNPACKED_DIR := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/warmcore/unpacked

.DEFAULT_GOAL := help
.PHONY: help tools demo test unit lint vmtest vmtest-matrix vmtest-all bench fuzz kernel initramfs images binaries clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tools: ## install the Debian packages that the other targets need
	@missing=; for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
		$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@set -e; for p in $(UNPACKED); do [ ! -d $(UNPACKED_DIR)/$$p ] || continue; \
		echo "unpacking: $$p"; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir"; get="apt-get -o APT::Sandbox::User=root download -qq $$p"; \
		$$get 2>/dev/null || { $(SUDO) apt-get update -qq; $$get; }; \
		dpkg-deb -x $${p}_*.deb root; mkdir -p $(UNPACKED_DIR); mv root $(UNPACKED_DIR)/$$p; done

binaries: ## build warmcore and warminit for this architecture into build/
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 GOARCH=$(ARCH) $(GO) build -trimpath -ldflags='-s -w -X main.version=$(VERSION) -X github.com/warmcore/warmcore/pkg/payload.Version=$(VERSION)' -o $(BUILD)/ ./cmds/warmcore ./cmds/warminit

initramfs: tools ## the payload's initramfs: u-root's init and warminit
	@initramfs/build.sh $(ARCH) $(BUILD)/initramfs.cpio.xz xz

kernel: tools ## the payload's own kernel, without initramfs (about 12 minutes, once)
	@boot/kernel/build.sh $(ARCH) $(BUILD)/kernel

images: initramfs kernel ## payload kernel with the initramfs in it: bzImage and PVH vmlinux, or Image
	@boot/kernel/build.sh $(ARCH) $(BUILD)/payload $(BUILD)/initramfs.cpio.xz

demo: tools ## crash a stock Debian kernel in QEMU and dump it (also ARCH=arm64)
	@$(GO) run ./vmtest/warmlab demo --arch $(ARCH) --out build/demo$(if $(filter arm64,$(ARCH)),-arm64)

test: tools lint unit vmtest ## everything: static checks, unit tests, crash stories

unit: tools ## unit tests with the race detector, and the fuzz seeds
	$(GO) test -race -timeout 10m ./cmds/... ./pkg/... ./boot/...

lint: ## static checks
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "gofmt the files above"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) tool go-errorlint ./...
	$(GO) mod tidy -diff

vmtest: tools ## the crash stories in QEMU, on both architectures, with the truth comparison
	@for a in amd64 arm64; do $(MAKE) --no-print-directory binaries images ARCH=$$a || exit 1; done
	$(GO) test -timeout 60m -count=1 -p 1 -parallel 2 -v ./vmtest/...

vmtest-matrix: tools ## three stories with kernels of Debian 12 and 13 and the newest, on both architectures (18 runs), and the long story kdump
	@for a in amd64 arm64; do $(MAKE) --no-print-directory binaries images ARCH=$$a || exit 1; done
	$(GO) run ./vmtest/warmlab matrix
	$(GO) run ./vmtest/warmlab run --story kdump --out build/matrix/kdump

vmtest-all: vmtest vmtest-matrix ## every story, with every firmware and all kernels

bench: tools binaries images ## measure speed and size; raw data in build/bench/
	@$(GO) run ./vmtest/warmlab bench --arch $(ARCH) --out build/bench

FUZZTIME ?= 30s
fuzz: tools ## run each fuzz target for FUZZTIME
	@for p in $$($(GO) list ./pkg/... ./boot/... ./vmtest/guest/wire); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz); do echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; done; done

clean: ## remove build/; caches under ~/.cache/warmcore stay
	rm -rf build
