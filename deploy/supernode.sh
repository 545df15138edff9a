#!/usr/bin/env bash
# Starts the SuperNode of a site. It only opens connections to the SuperLink and accepts none from other machines.
#
#   deploy/supernode.sh --superlink HOST:PORT --ca ca.crt --key KEY --config site.toml [--port PORT]
#     [--trusted-entities FILE] [--processes forked|new]
#
#   --superlink   address of the server, a name in its certificate; an IPv6 address in brackets
#   --ca          certificate of the authority, from the server's operator
#   --key         private key of the site, created once with
#                   ssh-keygen -t ecdsa -b 384 -N "" -f KEY
#                 Send the public key, KEY.pub, to the operator, who registers it; KEY never leaves the site
#   --config      settings of this site; see docs/deployment.md for the keys:
#                   site = "north"
#                   dataset = "esc50"
#                   data-dir = "/data/sounds"
#                   cache-dir = "/var/lib/fed-a2v/cache"
#   --port        port of the SuperNode's processes on 127.0.0.1; default 9094; different for each SuperNode of a machine
#   --trusted-entities
#                 YAML file of public keys, in Flower's format: only apps on the Flower Hub that are signed with one of
#                 them are run. The app that run.sh sends is not signed, and is then refused
#   --processes   forked: the process of each message is a fork of one that has imported Flower and torch (superexec.py);
#                 new: Flower starts a program for each message, which imports them. Default: forked, on Linux
#
# Stop it with Ctrl-C or SIGTERM.
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
superlink="" ca="" key="" config="" port=9094 trusted="" processes=new
[ "$(uname)" != Linux ] || processes=forked
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case "$1" in
    --superlink) superlink=$2 ;;
    --ca) ca=$2 ;;
    --key) key=$2 ;;
    --config) config=$2 ;;
    --port) port=$2 ;;
    --trusted-entities) trusted=$2 ;;
    --processes) processes=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ -n "$superlink" ] && [ -n "$ca" ] && [ -n "$key" ] && [ -n "$config" ] || usage
command -v flower-supernode >/dev/null || { echo "supernode.sh: no flower-supernode on PATH; activate the environment that fed_a2v is installed in" >&2; exit 1; }
for file in "$ca" "$key" "$config" ${trusted:+"$trusted"}; do
  [ -r "$file" ] || { echo "supernode.sh: cannot read $file" >&2; exit 1; }
done
case "$config" in
  *.toml) ;;
  *) echo "supernode.sh: $config must be named *.toml" >&2; exit 1 ;;
esac
case "$processes" in
  forked | new) ;;
  *) echo "supernode.sh: --processes $processes: set forked or new" >&2; exit 2 ;;
esac
# A misspelt key must not disable a limit of the site's owner; check it at the start rather than with each message.
python - "$config" <<'PYTHON' || exit 1
import sys, tomllib

from fed_a2v.errors import ConfigError
from fed_a2v.federation.client.node_config import read_node_config

try:
    with open(sys.argv[1], "rb") as file:
        read_node_config(tomllib.load(file)).check_deployed()
except (ConfigError, tomllib.TOMLDecodeError) as error:
    sys.exit(f"supernode.sh: {sys.argv[1]}: {error}")
PYTHON

export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
# Any user of this machine reaches the port; without the secret, none can request tasks of this site.
. "$(dirname "$0")/superexec.sh"
[ "$processes" = new ] || superexec=(python "$(dirname "$0")/superexec.py")
start_superexec "127.0.0.1:$port" --insecure

exec flower-supernode --isolation process --superexec-auth-secret-file "$secret" --superlink "$superlink" --root-certificates "$ca" --auth-supernode-private-key "$key" \
  --port "$port" --node-config "$config" ${trusted:+--trusted-entities "$trusted"}
