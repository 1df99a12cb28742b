# What the scripts of this folder share; sourced by them, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # its variables are used by those that source it
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Everything that is made or fetched lies below this folder; cargo's own output may lie elsewhere.
target=$root/target
artifacts=$target/artifacts
tools=$target/tools
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$target}
kernel_target=aarch64-unknown-none-softfloat

# What scripts/setup could not install into the system it has put here.
for folder in "$tools/bin" "$tools/rust/bin"; do
    [[ ! -d $folder ]] || PATH=$folder:$PATH
done
export PATH

say() {
    echo "$(basename "$0"): $*" >&2
}

die() {
    say "$*"
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Prints the path of one of the LLVM tools that belong to the toolchain (component llvm-tools).
llvm_tool() {
    local sysroot tool
    sysroot=$(cd "$root" && rustc --print sysroot)
    for tool in "$sysroot"/lib/rustlib/*/bin/"$1"; do
        [[ -x $tool ]] || die "the toolchain lacks $1: scripts/setup rust installs it"
        echo "$tool"
        return
    done
}
