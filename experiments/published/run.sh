#!/usr/bin/env bash
# One published result: `experiments/published/run.sh model_iii_physical 0` simulates, trains and evaluates with
# seed 0. Everything goes to data/published/NAME-SEED; after a kill the same command goes on.
set -euo pipefail
name=${1:?name of a file beside this script, such as model_iii_physical}
seed=${2:-0}
here=$(dirname "${BASH_SOURCE[0]}")
parameters=$here/$name.yaml
[[ -e $parameters ]] || { echo "$parameters: no such file; there are $(cd "$here" && ls ./*.yaml)" >&2; exit 2; }
out=data/published/$name-$seed
python=$(command -v .venv/bin/python || command -v python3)
say() { "$python" -m darkarc "$1" --params "$parameters" -S "seed=$seed" "${@:2}"; }

[[ -e $out/simulated/manifest.json ]] || say simulate --out "$out/simulated"
[[ -e $out/prepared/manifest.json ]] || say prepare --raw "$out/simulated" --out "$out/prepared" --reports "$out"
[[ -e $out/trained/manifest.json ]] ||
  say train --prepared "$out/prepared" --out "$out/trained" --run-file "$out/run.json" --reports "$out"
say evaluate --trained "$out/trained" --prepared "$out/prepared" --run-file "$out/run.json" --out "$out"
