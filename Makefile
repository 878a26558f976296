# SPDX-License-Identifier: GPL-2.0-only
# The commands of this repository; each is a script in tools/kvm_userfault. `make help` lists them.

MAKEFLAGS += --no-print-directory
TOOLS := tools/kvm_userfault
export ARCH DEBUG KERNEL_TARBALL BUILD ACCEL APPEND MEM SMP QEMU_ARGS TIMEOUT PAGES MINUTES KERNELS VCPUS MUTANTS

# What make vm boots; it is made only where there is none, so that the program's output stands alone.
BUILT := $(or $(BUILD),build)/$(or $(ARCH),x86_64)$(if $(DEBUG),-$(if $(filter kcsan,$(DEBUG)),kcsan,debug))/kernel/arch/*/boot/*Image

help:		## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1\t/p' Makefile | expand -t 12
	@echo "With ARCH=x86_64 (default) or arm64, DEBUG=1 (slow checks in the kernel), BUILD=directory."

run: selftests	## boot a VM and demand-page a guest in it through the ioctl; sets up all it needs
	@$(TOOLS)/run.sh

check: export ARCHS := $(or $(ARCHS),$(ARCH),x86_64 arm64)
check: deps	## everything that must pass, on ARCHS="x86_64 arm64"; in the end "N passed, N failed, N skipped"
	@$(TOOLS)/check.sh

check-long: export NEED := long
check-long: deps	## long random runs on the DEBUG=1 kernel. MINUTES=60 KERNELS="debug kcsan"
	@$(TOOLS)/check-long.sh

mutants: deps	## break the kernel in one place after the other: tests have to notice. MUTANTS="name..."
	@$(TOOLS)/mutants.sh

unused: deps	## compare the code of KVM without CONFIG_KVM_USERFAULT with that of the base
	@$(TOOLS)/unused.sh

builds: deps	## build KVM of x86 as modules, and for hosts of 32 bits
	@for v in modules 32bit; do ARCH=x86_64 VARIANT=$$v $(TOOLS)/kernel.sh || exit; done
	@ARCH=x86_64 VARIANT=32bit $(TOOLS)/lint.sh warnings

bench: export NEED := bench
bench: selftests	## count what a fetch costs, and its alternatives: build/bench.json, bench.svg. PAGES= VCPUS="1 2 4 8 16" KERNELS="off lockstat"
	@for v in $(filter off lockstat,$(or $(KERNELS),off lockstat)); do VARIANT=$$v $(TOOLS)/kernel.sh || exit; done
	@$(TOOLS)/bench.sh

vm: $(if $(wildcard $(BUILT)),,kernel)	## EXEC=program [ARGS="..."]: run it under our kernel; alone: a shell. APPEND= MEM= SMP= QEMU_ARGS= TIMEOUT=
	@$(TOOLS)/vm.sh $(EXEC) $(ARGS)

tree: deps	## unpack the base kernel into build/tree and lay the overlay over it
	@$(TOOLS)/tree.sh

refresh:	## save what has been edited in build/tree: back into .patch files and new files
	@$(TOOLS)/refresh.sh

kernel: tree	## configure and build the kernel
	@$(TOOLS)/kernel.sh

selftests: kernel	## build the KVM selftests, ours among them
	@$(TOOLS)/selftests.sh

deps:		## install the Debian packages that are missing
	@$(TOOLS)/deps.sh

clean:		## remove what has been built, keep the tree
	@$(TOOLS)/clean.sh

distclean:	## remove the build directory, with the tree
	@$(TOOLS)/clean.sh tree

.PHONY: help run check check-long mutants unused builds bench vm tree refresh kernel selftests deps clean distclean
