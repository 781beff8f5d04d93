# What every shell on a cluster's node needs; setup_node.sh adds it to ~/.bashrc, slurm.sh reads it too.
DARKARC="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PATH="$DARKARC/.venv/bin:$PATH"
# Nobody talks to this cluster without the token in ~/.ray/auth_token.
export RAY_AUTH_MODE=token
# Nothing phones home.
export DO_NOT_TRACK=1 DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true RAY_USAGE_STATS_ENABLED=0 ORT_DISABLE_TELEMETRY=1
# A trial says how many cores it uses.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
