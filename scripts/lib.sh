# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the other scripts share: where things are, which tools build the kernel.
# Everything made lies outside the checkout, in the cache, and each piece is
# named after what it depends on, so that two checkouts can use one cache.

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/blksnap
LLVM_VERSION=${LLVM_VERSION:-19}
BINDGEN_VERSION=0.72.1
OLDEST_RUSTC=1.85
KERNEL_SERIES=7.3
# The directory of an emulator that scripts/deps has fetched; tests/vm knows it, too.
EMULATOR=qemu-10

mkdir -p "$CACHE"/{lock,src,tree,build,image,logs}

die() { echo "${0##*/}: $*" >&2; exit 1; }
say() { echo "${0##*/}: $*" >&2; }

# lock NAME: waits for, then holds until this shell ends, the lock NAME.
lock() {
	local fd
	exec {fd}>"$CACHE/lock/$1"
	flock -n "$fd" || { say "waiting for another run ($1)"; flock "$fd"; }
}

# at_least VERSION MINIMUM
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

rustc_version() { rustc --version | cut -d' ' -f2; }

# Where the sources of Rust's core library are; they must match rustc exactly.
rust_lib_src() {
	local dir
	for dir in "$(rustc --print sysroot)/lib/rustlib/src/rust/library" \
		   "/usr/src/rustc-$(rustc_version)/library" \
		   "$CACHE/rust-src-$(rustc_version)/library"; do
		[ -e "$dir/core/src/lib.rs" ] && { echo "$dir"; return; }
	done
	return 1
}

# The kernel source that is never changed: KDIR, or the newest 7.3.y fetched.
pristine_tree() {
	if [ -n "${KDIR:-}" ]; then
		[ -e "$KDIR/Kbuild" ] || die "KDIR=$KDIR is not a kernel source tree"
		realpath "$KDIR"
	else
		find "$CACHE/src" -maxdepth 1 -name "linux-$KERNEL_SERIES.*" | sort -V |
			tail -n 1 | grep . || return 1
	fi
}

# The name of the tree that is built: a copy of the pristine one plus our files.
tree_name() {
	if [ -n "${KDIR:-}" ]; then
		echo "kdir-$(realpath "$KDIR" | sha256sum | cut -c1-8)"
	else
		basename "$(pristine_tree)"
	fi
}

# Tools for every kernel make; the fixed stamp keeps a rebuild of nothing small. What our own make
# was told is no business of the kernel's: with `DEBUG=1` it would build objtool, and then all
# else, with other flags.
kernel_env() {
	unset MAKEFLAGS MAKEOVERRIDES MFLAGS MAKELEVEL DEBUG
	export PATH="$CACHE/bindgen-$BINDGEN_VERSION/bin:$PATH"
	LIBCLANG_PATH=$("llvm-config-$LLVM_VERSION" --libdir)
	RUST_LIB_SRC=$(rust_lib_src) || die "no sources of Rust's core library: run scripts/deps"
	export LIBCLANG_PATH RUST_LIB_SRC
	export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1
	export KBUILD_BUILD_USER=blksnap KBUILD_BUILD_HOST=blksnap
}

# kmake OUT TREE ARGS...: make in TREE with its output in OUT.
kmake() {
	local out=$1 tree=$2
	shift 2
	make -C "$tree" O="$out" LLVM="-$LLVM_VERSION" "$@"
}

# Old images go, but not one that a guest is using.
prune_images() {
	local dir
	for dir in $(ls -dt "$CACHE/image/$1"-*/ 2>/dev/null | tail -n +5); do
		(flock -n 9 && rm -rf "$dir") 9>"$dir/lock" || true
	done
}
