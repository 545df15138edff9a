#!/usr/bin/env bash
# Runs a complete deployment on this machine, as a trial: creates certificates, keys and a folder of sounds for each of
# three sites; starts the SuperLink (TLS, authentication) and three SuperNodes; runs the experiment and prints the
# result; stops all processes and keeps only the run's folder.
#
#   deploy/local.sh [--rounds N] [--folder FOLDER] [--port PORT] [--start-timeout SECONDS] [--processes forked|new]
#     [KEY=VALUE ...]
#
#   --rounds          default 5
#   --folder          folder of the run; default outputs/local/DATE-TIME
#   --port            port of the SuperLink on 127.0.0.1; default: a free one
#   --start-timeout   maximum time for the start of SuperLink, sounds and sites, in seconds from the start of this
#                     script, and of the run's wait for its sites (federation.start_timeout); default 600
#   --processes       as for supernode.sh
#   KEY=VALUE         further overrides, as for `fed-a2v train`
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
rounds=5 folder=$PWD/outputs/local/$(date +%Y-%m-%d-%H-%M-%S) port="" limit=600 options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --rounds) rounds=${2:?--rounds needs a number}; shift 2 ;;
    --folder) folder=${2:?--folder needs a folder}; shift 2 ;;
    --port) port=${2:?--port needs a number}; shift 2 ;;
    --start-timeout) limit=${2:?--start-timeout needs a number of seconds}; shift 2 ;;
    --processes)
      case "${2:-}" in
        forked | new) options=(--processes "$2") ;;
        *) echo "local.sh: --processes ${2:-}: set forked or new" >&2; exit 2 ;;
      esac
      shift 2
      ;;
    -*) usage ;;
    *) break ;;
  esac
done
case "$limit" in *[!0-9]*) echo "local.sh: --start-timeout $limit: set an integer number of seconds" >&2; exit 2 ;; esac
case "$folder" in /*) ;; *) folder=$PWD/$folder ;; esac

# `make install` installs everything there.
[ ! -d "$repository/.venv/bin" ] || PATH="$repository/.venv/bin:$PATH"
for program in flower-superlink flower-supernode flwr fed-a2v openssl ssh-keygen; do
  command -v "$program" >/dev/null || { echo "local.sh: no $program on PATH; \`make install\` installs fed_a2v" >&2; exit 1; }
done

# The three sites share no class.
sites=(north east south)
north=dog,rooster,rain,sea_waves
east=crackling_fire,crying_baby,sneezing
south=clock_tick,helicopter,chainsaw

work=$(mktemp -d)
# Temporary files of all processes are deleted with $work.
mkdir "$work/tmp"
export TMPDIR=$work/tmp
export FLWR_HOME=$work/operator FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

# Starts a command in the background in its own process group, so that Ctrl-C in a terminal reaches this script only,
# and the command can be stopped together with its child processes.
groups=()
background() {
  set -m
  "$@" &
  set +m
  groups+=("$!")
}

# Sends a signal to all process groups; fails if none is left.
to_all() {
  local group sent=1
  for group in "${groups[@]}"; do
    kill "$1" -- "-$group" 2>/dev/null && sent=0
  done
  return $sent
}

# Sends SIGTERM, and SIGKILL after 10 s.
stop() {
  trap '' INT TERM
  to_all -TERM || true
  for _ in $(seq 100); do
    to_all -0 || break
    sleep 0.1
  done
  to_all -KILL || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

note() { echo "[$SECONDS s] $*"; }

broken() {
  echo "local.sh: $1; the end of its log:" >&2
  tail -n 20 "$2" >&2
  exit 1
}

# All waits at the start share one limit.
check_limit() {
  [ "$SECONDS" -lt "$limit" ] && return
  echo "local.sh: $1 after $SECONDS s; a slow machine needs more than --start-timeout $limit" >&2
  [ ! -s "${2:-}" ] || tail -n 20 "$2" >&2
  exit 1
}

# Waits for a background process and returns its exit status.
finished() {
  while alive "$2"; do
    check_limit "$1" "${3:-}"
    sleep 0.2
  done
  wait "$2"
}

# Flower's programs need a port as argument. A free port may be taken before the program starts: it is then started
# again with another one.
free_port() { python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'; }

alive() { kill -0 "$1" 2>/dev/null; }

port_was_taken() { grep -qi "address already in use" "$1"; }

note "Writing three sites' sounds, certificates and keys"
for site in "${sites[@]}"; do
  mkdir -p "$work/$site"
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "$work/$site/key"
  printf 'site = "%s"\ndataset = "esc50"\ndata-dir = "%s"\ncache-dir = "%s"\ndevice = "cpu"\n' \
    "$site" "$work/$site/sounds" "$work/$site/cache" >"$work/$site/site.toml"
done
# As `fed-a2v synth`, but for all sites in one process: starting three takes as long as writing the sounds.
background python - "$work" "north=$north" "east=$east" "south=$south" <<'PYTHON'
import multiprocessing, sys
from pathlib import Path

from fed_a2v.data.datasets.synth import write_wavs

work, *sites = sys.argv[1:]
folders = [(Path(work, name, "sounds"), 16, 0, classes.split(",")) for name, classes in (s.split("=") for s in sites)]
with multiprocessing.get_context("fork").Pool() as pool:
    pool.starmap(write_wavs, folders)
PYTHON
writing=$!
"$repository/deploy/certificates.sh" "$work/certificates" localhost >/dev/null

mkdir "$work/server"
# In its own folder, as on a separate machine.
start_superlink() {
  background in_folder "$work/server" env FLWR_HOME="$work/server" "$repository/deploy/superlink.sh" --port "$port" \
    --certificates "$work/certificates" --database "$work/server/state.db" </dev/null >"$work/server/log" 2>&1
  server=$!
}

in_folder() {
  cd "$1"
  shift
  exec "$@"
}

superlink_answers() {
  python - "$port" "$work/certificates/ca.crt" <<'PYTHON' 2>/dev/null
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
urllib.request.urlopen(f"https://127.0.0.1:{sys.argv[1]}/health", timeout=5, context=context)
PYTHON
}

given=$port
port=${given:-$(free_port)}
start_superlink
until superlink_answers; do
  if ! alive "$server"; then
    [ -z "$given" ] && port_was_taken "$work/server/log" || broken "the SuperLink did not start" "$work/server/log"
    port=$(free_port)
    start_superlink
  fi
  check_limit "the SuperLink does not answer" "$work/server/log"
  sleep 0.2
done
note "The SuperLink listens on 127.0.0.1:$port (TLS, SuperNode authentication)"

"$repository/deploy/connect.sh" local-test "127.0.0.1:$port" "$work/certificates/ca.crt" >/dev/null
# The run starts before the sites and waits for them, since its start takes as long as theirs.
background "$repository/deploy/run.sh" local-test "$folder" rounds="$rounds" dataset=esc50 partition=own \
  "dataset.classes=[$north,$east,$south]" federation.min_nodes=3 aggregation.min_replies=2 \
  federation.start_timeout="$limit" wandb.mode=disabled "$@" </dev/null
run=$!
finished "the sounds are not written" "$writing" || { echo "local.sh: the sounds could not be written" >&2; exit 1; }
nodes=()
start_supernode() {
  local site=${sites[$1]}
  background in_folder "$work/$site" env FLWR_HOME="$work/$site/flwr" "$repository/deploy/supernode.sh" \
    --superlink "127.0.0.1:$port" --ca "$work/certificates/ca.crt" --key "$work/$site/key" \
    --config "$work/$site/site.toml" --port "$(free_port)" ${options[@]+"${options[@]}"} </dev/null >"$work/$site/log" 2>&1
  nodes[$1]=$!
}

for index in 0 1 2; do
  site=${sites[$index]}
  background flwr supernode register "$work/$site/key.pub" local-test --name "$site" </dev/null >"$work/$site/registered" 2>&1
  finished "$site is not registered" $! "$work/$site/registered" \
    || broken "$site could not be registered" "$work/$site/registered"
  start_supernode "$index"
  note "Site $site is registered and starts: ${!site}"
done

first=""
while alive "$run"; do
  for index in 0 1 2; do
    alive "${nodes[$index]}" || ! port_was_taken "$work/${sites[$index]}/log" || start_supernode "$index"
  done
  [ -n "$first" ] || [ ! -s "$folder/metrics.jsonl" ] || { first=$SECONDS; note "The first round is finished"; }
  sleep 0.2
done
if ! wait "$run"; then
  for site in "${sites[@]}"; do
    echo "--- $site" >&2
    tail -n 5 "$work/$site/log" >&2
  done
  [ -n "$first" ] || echo "local.sh: no round was finished; if sites were missing, raise --start-timeout $limit" >&2
  exit 1
fi
total=$SECONDS

python - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from rich.console import Console

from fed_a2v.runs.table import rounds_table
from fed_a2v.storage.files import read_jsonl

Console().print(rounds_table(read_jsonl(Path(sys.argv[1]) / "metrics.jsonl")).rich())
PYTHON
echo "The first round was finished after ${first:-$total} s, $rounds rounds with three sites after $total s, all from the start of this script"
echo "Results: $folder"
