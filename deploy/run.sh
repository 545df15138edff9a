#!/usr/bin/env bash
# Runs the experiment on the sites, shows its log, and ends with 0 only if the run came to its end. `flwr run` itself
# ends with 0 whatever happens.
#
#   deploy/run.sh NAME OUTPUT_DIR [KEY=VALUE ...]
#
#   NAME         the connection that connect.sh wrote
#   OUTPUT_DIR   the run's folder, an absolute path on the server's machine; once more with the same folder goes on
#                where the run stopped
#   KEY=VALUE    overrides, as for `fed-a2v train`
#
# Ctrl-C stops showing the log, not the run: `flwr stop RUN_ID NAME` does that.
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
name=$1 output=$2
shift 2
case "$output" in
  /*) ;;
  *) echo "run.sh: OUTPUT_DIR must be an absolute path on the server's machine, not $output" >&2; exit 2 ;;
esac
command -v flwr >/dev/null || { echo "run.sh: no flwr on PATH; activate the environment that fed_a2v is installed in" >&2; exit 1; }
repository=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python - "$output" "$@" >"$scratch/run.toml" <<'PYTHON'
import json, shlex, sys
from fed_a2v.config.compose import ConfigError, compose_settings

output, *overrides = sys.argv[1:]
try:
    compose_settings(overrides)  # a wrong key is better found here than on the server
except ConfigError as error:
    sys.exit(f"run.sh: {error}")
print(f"overrides = {json.dumps(shlex.join(overrides))}")
print(f"output-dir = {json.dumps(output)}")
PYTHON

json() { python -c "import json, sys; print(json.load(sys.stdin)$1)"; }

# Of a copy of what the app consists of: Flower looks at every file below the folder, a whole .venv too.
mkdir "$scratch/app"
(cd "$repository" && cp -R fed_a2v conf pyproject.toml README.md LICENSE .gitignore "$scratch/app")
flwr run "$scratch/app" "$name" --run-config "$scratch/run.toml" --format json >"$scratch/started" || {
  cat "$scratch/started" >&2
  exit 1
}
id=$(json '["run-id"]' <"$scratch/started") || { cat "$scratch/started" >&2; exit 1; }
echo "Run $id"
flwr log "$id" "$name" --stream || true

# The log may end before the run does, when the SuperLink is lost; it may come back.
for _ in 1 2 3 4 5 6; do
  if flwr list "$name" --run-id "$id" --format json >"$scratch/listed" 2>&1; then
    status=$(json '["runs"][0]["status"]' <"$scratch/listed")
    case "$status" in
      finished:completed) echo "Run $id is finished: $output"; exit 0 ;;
      finished:*)
        echo "run.sh: run $id ended as ${status#finished:}: $(json '["runs"][0]["status-details"]' <"$scratch/listed")" >&2
        exit 1
        ;;
    esac
    flwr log "$id" "$name" --stream >/dev/null || true
  fi
  sleep 5
done
echo "run.sh: the SuperLink does not say how run $id ended; see \`flwr list $name --run-id $id\`" >&2
exit 1
