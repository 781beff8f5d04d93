#!/usr/bin/env bash
# Make a machine a node of the cluster: the environment of requirements.lock, and this project in it. What is
# there already stays, so that a second `ray up` takes seconds. Arguments: further packages for this cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted="$(cat requirements.lock pyproject.toml - <<<"$*" | sha256sum)"
if [[ "$(cat .venv/.node 2>/dev/null)" != "$wanted" ]]; then
  python="${PYTHON:-$(command -v python3.12 || command -v python3.11 || command -v python3)}"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "darkarc needs Python 3.11 or newer: set PYTHON=")'
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
  .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
  [[ $# -eq 0 ]] || .venv/bin/python -m uv pip install --quiet --python .venv/bin/python "$@"
  echo "$wanted" > .venv/.node
fi

line=". '$PWD/experiments/node.sh'"
grep -qsxF "$line" ~/.bashrc || echo "$line" >> ~/.bashrc
