#!/usr/bin/env bash
# A Ray cluster for the length of one Slurm job, and a study on it. From the project's folder, on a filesystem
# that all nodes share, after `make setup`:
#
#   sbatch experiments/slurm.sh experiments/paper.yaml --storage "$SCRATCH/studies" --resume
#
# All arguments are those of `darkarc tune`. The same line goes on after the time limit, or a lost node.
#SBATCH --job-name=darkarc
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@300
#SBATCH --output=slurm-%j.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
[[ -x .venv/bin/ray ]] || { echo "there is no .venv here: run \`make setup\` on the login node first" >&2; exit 2; }
. experiments/node.sh

# A token of this job alone: nodes are shared, and so is the network between them.
token="$(mktemp "$PWD/.darkarc-token.XXXXXX")"  # readable by its owner only
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
export RAY_AUTH_TOKEN_PATH="$token"
# Ray's sockets want a short path, on a disk of the node's own.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"

cpus="${SLURM_CPUS_PER_TASK:-1}"
gpus="${SLURM_GPUS_ON_NODE:-0}"
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
others="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2 | paste -sd , -)"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)"
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs may share a node
steps=()

finish() {
  ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
  wait || true
  rm -f "$token"
}
trap finish EXIT

start_ray() {  # NODELIST ARGUMENTS: in the foreground of a step, so that Slurm ends it with the job
  local nodes="$1" count
  shift
  count="$(tr , '\n' <<< "$nodes" | wc -l)"
  srun --nodes="$count" --ntasks="$count" --nodelist="$nodes" --cpus-per-task="$cpus" --overlap \
    ray start "$@" --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block &
  steps+=($!)
}

start_ray "$head" --head --node-ip-address="$address" --port="$port" \
  --ray-client-server-port=$((port + 20000)) --include-dashboard=false
until ray status --address="$address:$port" > /dev/null 2>&1; do
  kill -0 "${steps[0]}" || { echo "Ray did not start on $head" >&2; exit 1; }
  sleep 2
done
[[ -z "$others" ]] || start_ray "$others" --address="$address:$port"

# Five minutes before the end Slurm sends SIGINT: the study stops as at Ctrl-C, and --resume goes on with it.
set -m  # without job control a process in the background is deaf to SIGINT
python -m darkarc tune "$@" --ray "$address:$port" &
study=$!
set +m
asked=0
trap 'asked=1; kill -INT "$study"' INT TERM
while :; do
  status=0
  wait "$study" || status=$?
  ((asked)) || break
  asked=0  # this wait has ended for the signal, the next one is for the study
done
exit "$status"
