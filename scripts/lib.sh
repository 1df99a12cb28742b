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
imager=$CARGO_TARGET_DIR/debug/imager

# What scripts/setup could not install into the system it puts here; at first these are not there.
export PATH=$tools/bin:$tools/rust/bin:$PATH

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

# Copies a linked program to a raw binary, the form in which QEMU, U-Boot and Isthmus itself load one.
raw_binary() {
    mkdir -p "$(dirname "$2")"
    "$(llvm_tool llvm-objcopy)" -O binary "$1" "$2.new"
    mv "$2.new" "$2"
}

# Packs a system: pack SYSTEM FOLDER. Makes FOLDER/image and, unless they are there already, the disks
# that the system names.
pack() {
    local system=$1 folder=$2
    mkdir -p "$folder"
    "$imager" pack --kernel "$artifacts/isthmus" --artifacts "$artifacts" --files "$folder" "$system" "$folder/image"
}

# Sets `machine` to QEMU's arguments for a packed system, one element each.
read_machine() {
    mapfile -t machine < <("$imager" qemu --image "$2/image" --files "$2" "$1")
    [[ ${#machine[@]} -gt 0 ]] || die "$imager told no arguments for $1"
}

# Prints the absolute path of a system's description, given as a path or as a name in guests/systems.
system_path() {
    local path
    for path in "$1" "$root/guests/systems/$1.toml" "$root/guests/systems/$1"; do
        if [[ -f $path ]]; then
            realpath "$path"
            return
        fi
    done
    die "no system $1, nor guests/systems/$1.toml"
}
