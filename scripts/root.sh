# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A Debian 13 in a directory, to build and to try packages in. For scripts that have lib.sh and
# debian.sh; only root can use it.

# debian_root NAME PACKAGE…: sets ROOT to one with only these packages and what they depend on. It is made
# once, and not written to after that.
debian_root() {
	local name=$1 key list
	shift
	[ "$(id -u)" = 0 ] || die "only root can make a Debian 13 in a directory: run this as root"
	command -v mmdebstrap >/dev/null || {
		say "installing mmdebstrap"
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap; } \
			>"$CACHE/logs/apt.log" 2>&1 || die "could not install mmdebstrap (log: $CACHE/logs/apt.log)"
	}
	key=$(printf '%s\n' "$@" | sha256sum | cut -c1-16)
	mkdir -p "$CACHE/deb"
	ROOT=$CACHE/deb/root-$name-$key
	lock "root-$name"
	[ ! -e "$ROOT/made" ] || return 0
	say "making a Debian 13 with $name (a few minutes)"
	list=$(printf '%s,' "$@")
	debian_apt apt-trixie-backports trixie trixie-backports
	rm -rf "$CACHE/deb/root-$name-"*
	mmdebstrap --quiet --mode=root --variant=minbase --include="${list%,}" \
		--aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
		trixie "$ROOT" "$CACHE/apt-trixie-backports/sources.list" >&2 || die "mmdebstrap failed"
	# What the packages had to be fetched from is nothing to look at while they are tried.
	: >"$ROOT/etc/apt/sources.list"
	touch "$ROOT/made"
}

# in_debian ROOT DIR COMMAND…: runs it with ROOT as /, and DIR/shared where it is. What it writes
# elsewhere is kept in DIR/upper, and is there the next time. There is no network.
in_debian() {
	local root=$1 dir=$2
	shift 2
	mkdir -p "$dir"/{upper,overlay,merged,shared}
	# shellcheck disable=SC2016
	unshare --mount --net --pid --fork --kill-child bash -c '
		set -e
		root=$1 dir=$2
		shift 2
		mount -t overlay -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/overlay,xino=off" overlay "$dir/merged"
		cd "$dir/merged"
		mkdir -p ".$dir/shared"
		mount -t proc proc proc
		mount --rbind /dev dev
		mount --bind "$dir/shared" ".$dir/shared"
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 LC_ALL=C.UTF-8 \
			DEBIAN_FRONTEND=noninteractive chroot . "$@"
	' in_debian "$root" "$dir" "$@"
}
