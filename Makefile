# SPDX-License-Identifier: GPL-2.0
#
# What a person types; `make` alone lists it. (Inside a kernel tree it is Kbuild that
# counts.) All that is made lies in ~/.cache/blksnap, nothing in the checkout.

DEBUG ?= 0
UML ?= 0
QUICK ?= 0
on = $(filter-out 0 n no,$($1))
variant := $(or $(KERNEL),$(if $(call on,QUICK),quick),$(if $(call on,UML),uml),$(if $(call on,DEBUG),debug),release)
export KDIR
# The scripts use all processors themselves, and `deps` comes before what needs it.
.NOTPARALLEL:

.PHONY: help deps toolchain kernel tools tools-static tools-fuzz man install-tools deb vm check soak lint matrix bench demo coverage \
	install-tree uninstall-tree check-tree modules clean

help:
	@sed -n 's/^## //p' Makefile

## make demo                 see it work, in a virtual machine   (KERNEL=debian: on Debian's own kernel)
## make check                all tests   (TESTS='20-fidelity lint' for some, DEBUG=0|1 for one kernel)
##         [KERNEL=debian: what there is for Debian's own kernel, and TESTS=…, on that; KERNEL=arm64: on that for arm64]
## make soak                 the long tests   (TESTS=… and DEBUG=0|1 as above; HOURS=n of fuzzing;
##         KERNEL=debian: all files of tests/vm.d, on that)
## make coverage             lines of the driver that the tests reach   (TESTS=…; JOBS=n machines at a time)
## make vm [CMD='…']         run a command, or a shell, in a virtual machine with the module at hand
##         [DEBUG=1] [MEM=4G] [CPUS=2] [DISKS='512M 2G'] [APPEND='kernel parameters'] [LIMIT=seconds]
##         [SHARE=/directory that the guest may write to]   [QUICK=1: a process instead of a machine, for
##         CMD only; UML=1: with the checks of DEBUG=1]   [KERNEL=debian: Debian's own kernel; KERNEL=arm64:
##         that for arm64, without the command; else release (as it is without), quick, uml, debug]
## make bench                measurements   (FULL=1 larger, REPS=n, CPUS=n; ICOUNT=1: instructions instead of time,
##         CACHE=1: and what a model of caches misses; SCALE=1: with 1 to 8 processors, emulated; KERNEL=quick: not
##         emulated; KERNEL=debian)
## make kernel [QUICK=1|DEBUG=1|UML=1|KERNEL=…]   build the test kernel
## make tools                build the blksnap command, libblksnap and the examples (needs cargo and cc)
## make tools-static         build it without shared libraries, for an initramfs
## make man DIR=…            write the manual pages there
## make install-tools        install them, manual pages, completions, units of systemd, a rule of udev, …
##         [PREFIX=/usr/local] [LIBDIR=PREFIX/lib] [DESTDIR=…]
## make deb                  Debian packages of everything, for Debian 13 (needs cargo, rsync, mmdebstrap; no root: uidmap)
## make lint                 format, clippy, checkpatch, documentation
## make matrix               build the driver built in, without modules, without sysfs, …
## make deps                 install and fetch what building needs (the others do it too)
## make toolchain            of these, only what building a kernel needs
## make install-tree KDIR=…  put the files and patches into your own kernel tree, and say what comes next
## make check-tree KDIR=…    whether that tree's configuration has the driver, or why not   [O=output]
## make uninstall-tree KDIR=…  take all of it back
## make modules KDIR=…       build the module there   [O=output]
## make clean                remove what was built (not what was fetched)
##
## KDIR=/path/to/linux in any of them: use that kernel source, not Debian's 7.3.

deps:
	@scripts/deps

toolchain:
	@scripts/deps toolchain

kernel: deps
	@$(if $(filter debian arm64,$(variant)),scripts/stock build $(filter arm64,$(variant)),scripts/kernel build $(variant))

# No deps for these: cargo and a C compiler are enough.
tools:
	@scripts/tools build

tools-static:
	@scripts/tools static

man: tools
	@scripts/install-tools man $(DIR)

# Under sudo, what the user has built is installed.
export PREFIX LIBDIR DESTDIR
install-tools: $(if $(SUDO_USER),,tools)
	@scripts/install-tools

deb:
	@scripts/deb build

# As they were written: a `$` in them is the guest's, not make's.
override CMD := $(value CMD)
override APPEND := $(value APPEND)
export CMD APPEND
VM = tests/vm
vm: kernel tools
	@$(VM) $(if $(filter-out release,$(variant)),--$(variant)) $(if $(MEM),--mem $(MEM)) \
		$(if $(CPUS),--cpus $(CPUS)) $(if $(LIMIT),--limit $(LIMIT)) \
		$(foreach size,$(DISKS),--disk $(size)) $(foreach share,$(SHARE),--share $(share)) \
		--append "$$APPEND" $(if $(CMD),-- "$$CMD",--interactive)

tools-fuzz: deps
	@scripts/tools fuzz

check: deps tools tools-static tools-fuzz
	@tests/check $(addprefix --,$(filter debian arm64,$(KERNEL))) $(TESTS)

soak: deps tools tools-fuzz
	@tests/check --soak $(addprefix --,$(filter debian arm64,$(KERNEL))) $(TESTS)

coverage: deps tools tools-static tools-fuzz
	@tests/coverage/run $(TESTS)

lint: deps tools
	@scripts/lint

matrix: deps
	@scripts/matrix

bench: kernel tools
	@scripts/deps bench
	@tests/bench/$(if $(filter-out 0,$(SCALE)),scale,run)

demo: kernel tools
	@tests/demo/run $(if $(filter-out release,$(variant)),--$(variant))

export O
install-tree:
	@scripts/tree install

uninstall-tree:
	@scripts/tree uninstall

check-tree:
	@scripts/tree check

modules:
	@scripts/tree modules

clean:
	@scripts/kernel clean
