#!/usr/bin/env bash
# decode.sh FOLDER: measures decoding and switching on a GPU for BENCHMARKS.md and leaves tables, JSON and drawings in the new FOLDER.
#
# LORA_TRAIN is the program, by default built here with the tag gpu. PEER, if set, is a command that prints the peer's figures; it runs
# between ours, so that both meet the same card in the same state. The card must be idle.
set -euo pipefail
# shellcheck source=scripts/bench/begin.sh
. "$(dirname "$0")/begin.sh"

status=0
decode() { # SHAPE: every row; those that do not fit the card are noted in the table, and the rest goes on
  measure "$1" decode --shape "$1" --all --plot "$out/$1.svg" || status=$?
}

decode llama2-7b
[ -z "${PEER:-}" ] || { eval "$PEER" 2>&1 || echo "the peer ended with status $?"; } | tee "$out/peer.txt"
decode smollm2-135m
for shape in llama2-7b smollm2-135m; do
  measure "switch-$shape" switch --shape "$shape"
done
# A switch reads two experts of however many there are, of eight times the rank here; and the first measurements again, which show what the
# card's state does.
measure switch-llama2-7b-64-experts switch --shape llama2-7b --experts 64
measure switch-llama2-7b-rank-64 switch --shape llama2-7b --rank 64
measure llama2-7b-again decode --shape llama2-7b
measure switch-llama2-7b-again switch --shape llama2-7b
exit "$status"
