# shellcheck shell=bash
# Shared by the scripts of this folder, which source it.

# shellcheck disable=SC2034 # used by those who source this file
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${SHUNT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/shunt}
kernels=(6.12 7.2)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$1"
    exit "${2:-1}"
}

# kernel_version SERIES: the full version that is unpacked for SERIES, nothing when none is.
kernel_version() {
    local image
    for image in "$cache/kernel-$1/boot/vmlinuz-"*; do
        [[ -e $image ]] && printf '%s\n' "${image##*/vmlinuz-}"
    done
}

# The initial RAM disk is cheap to build and its content comes from scripts/setup, so a newer setup makes it stale.
kernel_ready() {
    [[ -n $(kernel_version "$1") && $cache/kernel-$1/initrd -nt $checkout/scripts/setup ]]
}
