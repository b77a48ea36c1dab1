#!/usr/bin/env bash
# libcuda.sh INCLUDE OUT: makes OUT/libcuda.a, which has every function that INCLUDE/cuda.h names and finds them in the driver's
# libcuda.so.1 while the program runs. A program linked with it is built where there is no driver, and starts where there is none.
set -euo pipefail
include="${1:?usage: libcuda.sh INCLUDE OUT}" out="${2:?usage: libcuda.sh INCLUDE OUT}"
here="$(cd "$(dirname "$0")" && pwd)"
cc="${CC:-cc}"
mkdir -p "$out"

case "$("$cc" -dumpmachine)" in
  x86_64*) jump='jmp *SLOT(%rip)' ;;
  aarch64*) jump='adrp x16, SLOT; ldr x16, [x16, :lo12:SLOT]; br x16' ;;
  *) echo "libcuda.sh: $("$cc" -dumpmachine): only x86-64 and arm64 are known" >&2; exit 1 ;;
esac

grep -ohE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+|_ptsz|_ptds)*\b' "$include/cuda.h" | grep -vx cuInit | LC_ALL=C sort -u |
  awk -v jump="$jump" '
    { name[NR] = $1 }
    END {
      print ".text"
      for (i = 1; i <= NR; i++) {
        j = jump; gsub("SLOT", "slot_" name[i], j)
        printf ".globl %s\n.type %s, %%function\n%s: %s\n", name[i], name[i], name[i], j
      }
      print ".data\n.balign 8\n.globl driver_slots\ndriver_slots:"
      for (i = 1; i <= NR; i++) printf "slot_%s: .quad driver_absent\n", name[i]
      print ".section .rodata\n.balign 8\n.globl driver_count\ndriver_count: .quad " NR "\n.globl driver_names\ndriver_names:"
      for (i = 1; i <= NR; i++) printf ".asciz \"%s\"\n", name[i]
      print ".section .note.GNU-stack,\"\",%progbits"
    }' >"$out/libcuda_jumps.s"
"$cc" -c -o "$out/libcuda_jumps.o" "$out/libcuda_jumps.s"
"$cc" -c -O2 -Wall -Wextra -fPIC -o "$out/libcuda_open.o" "$here/libcuda.c"
rm -f "$out/libcuda.a"
ar rcs "$out/libcuda.a" "$out/libcuda_jumps.o" "$out/libcuda_open.o"
