#!/bin/sh
# Prepare a Debian machine to run the stand-in device: an emulator for arm64 programs, the tools
# that build its root, FUSE, OpenSSH, and the cross-compiler for clockstep.c.
#
# Run as root. Idempotent; takes well under a second when everything is there. Packages come from
# the machine's own apt sources, whatever they are.
set -eu

# package:file, so that "is it installed" is one file test and needs no dpkg call
NEEDED="
qemu-user-static:/usr/bin/qemu-aarch64-static
binfmt-support:/usr/sbin/update-binfmts
mmdebstrap:/usr/bin/mmdebstrap
arch-test:/usr/bin/arch-test
debian-archive-keyring:/usr/share/keyrings/debian-archive-keyring.gpg
fuse3:/usr/bin/fusermount3
openssh-client:/usr/bin/ssh
openssh-server:/usr/sbin/sshd
iproute2:/sbin/ip
util-linux:/usr/bin/nsenter
gcc-aarch64-linux-gnu:/usr/bin/aarch64-linux-gnu-gcc
libc6-dev-arm64-cross:/usr/aarch64-linux-gnu/include/time.h
"
BINFMT=/proc/sys/fs/binfmt_misc

if [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: run this as root (it installs Debian packages)" >&2
    exit 1
fi
if [ ! -e /etc/debian_version ]; then
    echo "install.sh: this is for Debian; the stand-in needs its packages" >&2
    exit 1
fi

missing=""
for pair in $NEEDED; do
    [ -e "${pair#*:}" ] || missing="$missing ${pair%%:*}"
done
if [ -n "$missing" ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # shellcheck disable=SC2086  # a list of package names
    apt-get install -q -y --no-install-recommends $missing
fi

# The package enables its entries at install time, but only where binfmt_misc is already mounted.
[ -e "$BINFMT/register" ] || mount -t binfmt_misc binfmt_misc "$BINFMT"
[ -e "$BINFMT/qemu-aarch64" ] || update-binfmts --enable qemu-aarch64
grep -q '^enabled' "$BINFMT/qemu-aarch64"
