# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# To fetch packages from other suites of Debian than the system's, without touching the system.
# For scripts that have lib.sh.

# debian_apt NAME SUITE…: makes APT the options by which apt-get and apt-cache see these suites of
# Debian, without touching the system's package sources: private lists, the mirror and the keys
# are the system's own. With ARCHITECTURES (amd64,arm64) packages of those, as on a machine of the first one.
debian_apt() {
	local apt=$CACHE/$1 mirror suite
	shift
	command -v apt-get >/dev/null || die "no apt-get to fetch from Debian with"
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
		 'Label: Debian' | sort -u | head -n 1)
	[ -n "$mirror" ] || die "found no Debian mirror in the system's package sources"
	mkdir -p "$apt"/{lists,cache/archives}/partial
	for suite in "$@"; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
	done >"$apt/sources.list"
	APT=(-qq -o "Dir::Etc::SourceList=$apt/sources.list"
	     -o Dir::Etc::SourceParts=/nonexistent
	     -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
	     -o APT::Sandbox::User=root)
	[ -z "${ARCHITECTURES:-}" ] ||
		APT+=(-o "APT::Architecture=${ARCHITECTURES%%,*}" -o "APT::Architectures=$ARCHITECTURES")
	apt-get "${APT[@]}" update || die "could not read the lists of Debian's $*"
}

# debian_fetch PACKAGE PATTERN DIR [PACKAGE…]: downloads and unpacks into DIR a PACKAGE whose
# version matches PATTERN, and more of the same version, from other Debian suites.
debian_fetch() {
	local package=$1 pattern=$2 dir=$3 version
	shift 3
	# shellcheck disable=SC2086
	debian_apt apt ${SUITES:-trixie trixie-backports sid}
	version=$(apt-cache "${APT[@]}" madison "$package" | awk '{print $3}' |
		  grep -E "^$pattern" | sort -V | tail -n 1) ||
		die "Debian has no $package matching $pattern"
	say "fetching $package $version"
	rm -rf "$dir"
	mkdir -p "$dir"
	(cd "$dir" && apt-get "${APT[@]}" download "$package=$version" "${@/%/=$version}") ||
		die "could not download $package $version"
	local deb
	for deb in "$dir"/*.deb; do dpkg-deb -x "$deb" "$dir"; done
}
