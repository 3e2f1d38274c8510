# shellcheck shell=bash
# Functions and settings of the scripts in this folder, which source this file.

# shellcheck disable=SC2034 # used by those who source this file
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${SHUNT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/shunt}
kernels=(6.12 7.2)
# Where the programs are that a virtual machine or the demo runs.
programs=${SHUNT_PROGRAMS:-$checkout/target/release}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$1"
    exit "${2:-1}"
}

# kernel_version SERIES: prints the full version of the kernel that is unpacked for SERIES, or nothing without one.
kernel_version() {
    local image
    for image in "$cache/kernel-$1/boot/vmlinuz-"*; do
        [[ -e $image ]] && printf '%s\n' "${image##*/vmlinuz-}"
    done
}

# kernel_ready SERIES: whether kernel and initial RAM disk are in the cache. The RAM disk is stale if scripts/setup,
# which defines its content, is newer; it is cheap to build.
kernel_ready() {
    [[ -n $(kernel_version "$1") && $cache/kernel-$1/initrd -nt $checkout/scripts/setup ]]
}
