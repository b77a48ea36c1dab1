#!/usr/bin/env bash
# train.sh FOLDER: measures training on a GPU for BENCHMARKS.md and leaves tables and JSON in the new FOLDER.
#
# LORA_TRAIN is the program, by default built here with the tag gpu. PEER, if set, is a command that prints the peer's figures; it runs
# between ours, so that both meet the same card in the same state. MODELS, if set, is a folder with llama2-7b and smollm2-135m as
# random_model.py makes them: then the time from a start to its first step is measured too, of models in the page cache. The card
# must be idle.
set -euo pipefail
out="${1:?usage: train.sh FOLDER}"
root="$(cd "$(dirname "$0")/../.." && pwd)"
mkdir "$out"
out="$(cd "$out" && pwd)"
program="${LORA_TRAIN:-$out/lora-train}"
if [ -z "${LORA_TRAIN:-}" ]; then
  make -s -C "$root" gpu
  mv "$root/lora-train" "$program"
fi

nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.sm,utilization.gpu --format=csv | tee "$out/card.csv"

measure() { # NAME FLAG…
  local name="$1"
  shift
  echo "== $name: bench train $*"
  "$program" bench train --backend cuda --json "$out/$name.json" "$@" | tee "$out/$name.txt"
}
first() { # SHAPE: the time to the first step, twice, of which the second finds the model in the page cache
  [ -d "${MODELS:-}/$1" ] || return 0
  echo "== $1: first step"
  for try in 1 2; do
    # What follows the step, measuring and exporting random weights, may fail.
    { "$program" run --backend cuda --set "model.path=$MODELS/$1" --set data.tasks=toy --set train.max_steps=1 --set eval.limit=1 \
      --out "$out/run-$1-$try" 2>&1 >/dev/null || true; } | grep '^first step' | tee -a "$out/first-$1.txt"
  done
}

seven=(--shape llama2-7b --batch 4 --length 512)
small=(--shape smollm2-135m --batch 16 --length 512)
measure llama2-7b "${seven[@]}" --steps 50 --profile
measure smollm2-135m "${small[@]}" --steps 100 --profile
[ -z "${PEER:-}" ] || eval "$PEER" 2>&1 | tee "$out/peer.txt"
# The same total rank, 64, in 8, 16, 32 and 64 experts; and the first measurement again, which shows what the card's state does.
for experts in 16 32 64; do
  measure "llama2-7b-$experts-experts" "${seven[@]}" --steps 50 --experts "$experts" --rank $((64 / experts))
done
measure llama2-7b-again "${seven[@]}" --steps 50
measure smollm2-135m-again "${small[@]}" --steps 100
measure llama2-7b-recompute "${seven[@]}" --steps 50 --recompute
"$program" bench gemm --backend cuda --json "$out/gemm.json" --shape llama2-7b --batch 4 --length 512 | tee "$out/gemm.txt"
first smollm2-135m
first llama2-7b
