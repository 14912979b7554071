# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A Debian 13 in a directory, to build and to try packages in. For scripts that have lib.sh and
# debian.sh.
#
# An ordinary user is root there by a user namespace, in which the user has number 0, and the
# numbers that are subordinate to the user are all others. So what root makes there is the user's
# own here.

# An ordinary user's lacks chroot.
PATH=$PATH:/usr/sbin:/sbin
# Options of unshare for an ordinary user, who can mount nothing, not even proc, in the namespaces
# of others.
AS_ROOT=()
[ "$(id -u)" = 0 ] || AS_ROOT=(--user --map-root-user --map-auto --mount --pid --fork)

# as_root COMMAND…: runs it so, or as it is.
as_root() {
	if [ ${#AS_ROOT[@]} = 0 ]; then "$@"; else unshare "${AS_ROOT[@]}" -- "$@"; fi
}

no_root() { die "to make a Debian 13 in a directory, an ordinary user needs a user namespace: $1; or do it as root"; }

# Ends with a sentence what to do if this user cannot be root there.
can_be_root() {
	local name dir why
	[ ${#AS_ROOT[@]} -gt 0 ] || return 0
	name=$(id -un)
	command -v newuidmap >/dev/null || no_root "apt install uidmap"
	{ grep -q "^$name:" /etc/subuid && grep -q "^$name:" /etc/subgid; } 2>/dev/null ||
		no_root "/etc/subuid and /etc/subgid each need a line such as $name:100000:65536, with numbers of nobody else"
	why=$(as_root true 2>&1) || no_root "the system lets $name make none ($why): see the sysctls user.max_user_namespaces, \
kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
	dir=$(mktemp -d "$CACHE/deb/try.XXXXXX")
	mkdir "$dir"/{lower,upper,overlay,merged}
	# shellcheck disable=SC2016
	why=$(as_root unshare --net sh -c '
		mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/overlay,userxattr" overlay "$1/merged" &&
			mount -t proc proc "$1/merged"' - "$dir" 2>&1) || true
	as_root rm -rf "$dir"
	[ -z "$why" ] || no_root "in one of $name's nothing can be mounted here ($why): that takes Linux 5.11, and no container"
}

# debian_root NAME PACKAGE…: sets ROOT to one with only these packages and what they depend on. It
# is made once, and not written to after that.
debian_root() {
	local name=$1 key list
	shift
	command -v mmdebstrap >/dev/null || {
		[ "$(id -u)" = 0 ] || die "needs mmdebstrap: apt install mmdebstrap"
		say "installing mmdebstrap"
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap; } \
			>"$CACHE/logs/apt.log" 2>&1 || die "could not install mmdebstrap (log: $CACHE/logs/apt.log)"
	}
	mkdir -p "$CACHE/deb"
	can_be_root
	key=$(printf '%s\n' "$@" | sha256sum | cut -c1-16)
	ROOT=$CACHE/deb/root-$name-$key
	lock "root-$name"
	[ ! -e "$ROOT/made" ] || return 0
	say "making a Debian 13 with $name (a few minutes)"
	list=$(printf '%s,' "$@")
	debian_apt apt-trixie-backports trixie trixie-backports
	as_root rm -rf "$CACHE/deb/root-$name-"*
	# It finds by itself that it is root in a user namespace.
	as_root mmdebstrap --quiet --mode=root --variant=minbase --include="${list%,}" \
		--aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
		trixie "$ROOT" "$CACHE/apt-trixie-backports/sources.list" >&2 || die "mmdebstrap failed"
	# What the packages had to be fetched from is nothing to look at while they are tried.
	: >"$ROOT/etc/apt/sources.list"
	touch "$ROOT/made"
}

# in_debian ROOT DIR COMMAND…: runs it with ROOT as /, and DIR/shared where it is. What it writes
# elsewhere is kept in DIR/upper, and is there the next time. There is no network.
in_debian() {
	local root=$1 dir=$2 options=xino=off
	shift 2
	# By what attributes a user may write, overlayfs remembers what was removed.
	[ ${#AS_ROOT[@]} = 0 ] || options+=,userxattr
	mkdir -p "$dir"/{upper,overlay,merged,shared}
	# shellcheck disable=SC2016
	unshare "${AS_ROOT[@]}" --mount --net --pid --fork --kill-child bash -c '
		set -e
		root=$1 dir=$2 options=$3
		shift 3
		mount -t overlay -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/overlay,$options" overlay "$dir/merged"
		cd "$dir/merged"
		mkdir -p ".$dir/shared"
		mount -t proc proc proc
		mount --rbind /dev dev
		mount --bind "$dir/shared" ".$dir/shared"
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 LC_ALL=C.UTF-8 \
			DEBIAN_FRONTEND=noninteractive chroot . "$@"
	' in_debian "$root" "$dir" "$options" "$@"
}
