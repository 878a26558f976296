#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Boot a VM under our kernel, and in it demand-page a guest through the ioctl.

. "$(dirname "$0")/lib.sh"

start=$(now)
echo
echo "Booting Linux $(cat "$out/kernel/include/config/kernel.release") with our KVM in QEMU ..."
status=0
TIMEOUT=${TIMEOUT:-600} "$here/vm.sh" "$selftests/userfault_demo" </dev/null || status=$?
echo
if [ "$status" -eq 0 ]; then
	say "demand-page a guest" "$(since "$start")"
else
	die "the demonstration failed with status $status; the VM's log, if there is one, is in $out/vm"
fi
