#!/usr/bin/env bash
# Starts the SuperLink on the server's machine, with TLS, SuperNode authentication and a persistent database.
#
#   deploy/superlink.sh --certificates FOLDER --database FILE [--host ADDRESS] [--port PORT]
#
#   --certificates   folder written by certificates.sh
#   --database       file of registered sites and runs, kept over restarts
#   --host           address to listen on; default 127.0.0.1: this machine only. With 0.0.0.0, anyone who reaches the
#                    port can submit code, since the control API has no login: restrict access by a firewall
#   --port           default 9443
#
# Runs write to the paths of their output-dir on this machine. Stop it with Ctrl-C or SIGTERM.
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
host=127.0.0.1 port=9443 certificates="" database=""
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case "$1" in
    --certificates) certificates=$2 ;;
    --database) database=$2 ;;
    --host) host=$2 ;;
    --port) port=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ -n "$certificates" ] && [ -n "$database" ] || usage
command -v flower-superlink >/dev/null || { echo "superlink.sh: no flower-superlink on PATH; activate the environment that fed_a2v is installed in" >&2; exit 1; }
for file in ca.crt server.pem server.key; do
  [ -r "$certificates/$file" ] || { echo "superlink.sh: cannot read $certificates/$file; create it with certificates.sh" >&2; exit 1; }
done

# Otherwise Flower installs the app's dependencies for every run, in a new environment.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
# Without the secret, no process that reaches the port can request tasks of the server.
. "$(dirname "$0")/superexec.sh"
own=$host
case "$host" in 0.0.0.0) own=127.0.0.1 ;; ::) own=::1 ;; esac
case "$own" in *:*) own="[$own]" ;; esac
start_superexec "$own:$port" --root-certificates "$certificates/ca.crt"

exec flower-superlink --isolation process --superexec-auth-secret-file "$secret" --host "$host" --port "$port" --disable-runtime-dependency-installation \
  --ssl-ca-certfile "$certificates/ca.crt" --ssl-certfile "$certificates/server.pem" \
  --ssl-keyfile "$certificates/server.key" --enable-supernode-auth --database "$database"
