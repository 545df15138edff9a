#!/usr/bin/env bash
# Starts the SuperLink on the server's machine: TLS, SuperNode authentication, a database that survives a restart.
#
#   deploy/superlink.sh --certificates FOLDER --database FILE [--host ADDRESS] [--port PORT]
#
#   --certificates   what certificates.sh wrote
#   --database       registered sites and runs; kept over restarts
#   --host           address to listen on; default 127.0.0.1: this machine only. With 0.0.0.0 anyone who reaches the
#                    port can submit code: the control API has no login, so a firewall must keep strangers out
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
  [ -r "$certificates/$file" ] || { echo "superlink.sh: cannot read $certificates/$file; make it with certificates.sh" >&2; exit 1; }
done

# Else Flower installs the app's dependencies anew for every run, in an environment of its own.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
# Whoever reaches the port is given no task of the server's without the secret.
. "$(dirname "$0")/superexec.sh"
own=$host
case "$host" in 0.0.0.0) own=127.0.0.1 ;; ::) own=::1 ;; esac
case "$own" in *:*) own="[$own]" ;; esac
start_superexec "$own:$port" --root-certificates "$certificates/ca.crt"

exec flower-superlink --isolation process --superexec-auth-secret-file "$secret" --host "$host" --port "$port" --disable-runtime-dependency-installation \
  --ssl-ca-certfile "$certificates/ca.crt" --ssl-certfile "$certificates/server.pem" \
  --ssl-keyfile "$certificates/server.key" --enable-supernode-auth --database "$database"
