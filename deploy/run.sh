#!/usr/bin/env bash
# Runs the experiment on the sites and prints its log. The exit status is 0 only if the run finished, whereas that of
# `flwr run` is always 0.
#
#   deploy/run.sh NAME OUTPUT_DIR [KEY=VALUE ...]
#
#   NAME         connection written by connect.sh
#   OUTPUT_DIR   folder of the run, an absolute path on the server's machine; the same folder again resumes the run
#   KEY=VALUE    overrides, as for `fed-a2v train`
#
# Ctrl-C stops the log, not the run; `flwr stop RUN_ID NAME` stops the run.
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
from fed_a2v.config.compose import compose_settings
from fed_a2v.errors import ConfigError

output, *overrides = sys.argv[1:]
try:
    compose_settings(overrides)  # report a wrong key here rather than on the server
except ConfigError as error:
    sys.exit(f"run.sh: {error}")
print(f"overrides = {json.dumps(shlex.join(overrides))}")
print(f"output-dir = {json.dumps(output)}")
PYTHON

json() { python -c "import json, sys; print(json.load(sys.stdin)$1)"; }

# From a copy with the app's files only, since Flower reads every file below the folder, including a .venv.
mkdir "$scratch/app"
(cd "$repository" && cp -R fed_a2v conf pyproject.toml README.md LICENSE .gitignore "$scratch/app")
flwr run "$scratch/app" "$name" --run-config "$scratch/run.toml" --format json >"$scratch/started" || {
  cat "$scratch/started" >&2
  exit 1
}
id=$(json '["run-id"]' <"$scratch/started") || { cat "$scratch/started" >&2; exit 1; }
echo "Run $id"
flwr log "$id" "$name" --stream || true

# The log ends before the run if the connection to the SuperLink is lost: ask for the status until it is back.
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
echo "run.sh: the SuperLink does not report the status of run $id; see \`flwr list $name --run-id $id\`" >&2
exit 1
