#!/usr/bin/env bash
# Starts a site's SuperNode. It opens connections to the SuperLink only; nobody connects to it.
#
#   deploy/supernode.sh --superlink HOST:PORT --ca ca.crt --key KEY --config site.toml [--port PORT]
#     [--trusted-entities FILE]
#
#   --superlink   the server, by a name that its certificate has; an IPv6 address in brackets
#   --ca          the authority's certificate, from the server's operator
#   --key         the site's private key, made once with
#                   ssh-keygen -t ecdsa -b 384 -N "" -f KEY
#                 Its public half, KEY.pub, goes to the operator, who registers it; KEY never leaves the site
#   --config      what only this site knows; see docs/deployment.md for the keys:
#                   site = "north"
#                   dataset = "esc50"
#                   data-dir = "/data/sounds"
#                   cache-dir = "/var/lib/fed-a2v/cache"
#   --port        of the SuperNode's own processes on 127.0.0.1; default 9094; another for each SuperNode of a machine
#   --trusted-entities
#                 YAML file of public keys, as Flower reads it: only apps that one of them has signed on the Flower Hub
#                 are run. What run.sh sends is signed by nobody, and refused then
#
# Stop it with Ctrl-C or SIGTERM.
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
superlink="" ca="" key="" config="" port=9094 trusted=""
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case "$1" in
    --superlink) superlink=$2 ;;
    --ca) ca=$2 ;;
    --key) key=$2 ;;
    --config) config=$2 ;;
    --port) port=$2 ;;
    --trusted-entities) trusted=$2 ;;
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
# A slip must not switch off what the site's owner wants; it would be refused with every message, too.
python - "$config" <<'PYTHON' || exit 1
import sys, tomllib

from fed_a2v.federation.client.node_config import read_node_config
from fed_a2v.config.schema import ConfigError

try:
    with open(sys.argv[1], "rb") as file:
        read_node_config(tomllib.load(file)).check_deployed()
except (ConfigError, tomllib.TOMLDecodeError) as error:
    sys.exit(f"supernode.sh: {sys.argv[1]}: {error}")
PYTHON

export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
# Any user of this machine reaches the port; without the secret none is given a task of this site.
. "$(dirname "$0")/superexec.sh"
start_superexec "127.0.0.1:$port" --insecure

exec flower-supernode --isolation process --superexec-auth-secret-file "$secret" --superlink "$superlink" --root-certificates "$ca" --auth-supernode-private-key "$key" \
  --port "$port" --node-config "$config" ${trusted:+--trusted-entities "$trusted"}
