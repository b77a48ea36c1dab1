# begin.sh, sourced by what measures on a GPU for BENCHMARKS.md with the new folder for its tables and JSON: sets out, root and program, which is
# $LORA_TRAIN or built here with the tag gpu, and notes what the card is, which must be idle.
out="${1:?usage: $(basename "$0") FOLDER}"
root="$(cd "$(dirname "$0")/../.." && pwd)"
mkdir "$out"
out="$(cd "$out" && pwd)"
program="${LORA_TRAIN:-$out/lora-train}"
if [ -z "${LORA_TRAIN:-}" ]; then
  make -s -C "$root" gpu
  mv "$root/lora-train" "$program"
fi

nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.sm,utilization.gpu --format=csv | tee "$out/card.csv"

measure() { # NAME COMMAND FLAG…: a command of bench
  local name="$1"
  shift
  echo "== $name: bench $*"
  "$program" bench "$@" --backend cuda --json "$out/$name.json" | tee "$out/$name.txt"
}
