# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# TAP for tests written in shell: source it, and end with `finish`.

n=0
ok() { n=$((n + 1)); echo "ok $n - $1"; }
# not_ok NAME WHY
not_ok() { n=$((n + 1)); echo "not ok $n - $1"; echo "# ${2//$'\n'/$'\n# '}"; }
# check NAME COMMAND…: the command succeeds. What it prints is shown if not.
check() {
	local name=$1 output
	shift
	if output=$("$@" 2>&1); then ok "$name"; else not_ok "$name" "$* → $? $output"; fi
}
# same NAME GOT WANTED
same() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "got: $2; wanted: $3"; fi; }
# fails NAME TEXT COMMAND…: the command fails, with the text on standard error, and none on the other.
fails() {
	local name=$1 text=$2 output status
	shift 2
	output=$("$@" 2>/tmp/stderr)
	status=$?
	if [ "$status" = 1 ] && [ -z "$output" ] && grep -q -e "$text" /tmp/stderr; then
		ok "$name"
	else
		not_ok "$name" "$* → $status, $output, $(tr '\n' ' ' </tmp/stderr)"
	fi
}
# until_true COMMAND…: waits for it to succeed, up to a minute.
until_true() {
	local i
	for ((i = 0; i < 600; i++)); do
		"$@" >/dev/null 2>&1 && return
		sleep 0.1
	done
	return 1
}
# The number of a device node, as MAJOR:MINOR.
number() { echo "$((0x$(stat -L -c %t "$1"))):$((0x$(stat -L -c %T "$1")))"; }
# Of both interfaces.
snapshots() { ls -d /sys/class/blksnap/snapshot-* 2>/dev/null | wc -l; }
finish() { echo "1..$n"; }
