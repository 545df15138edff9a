#!/usr/bin/env bash
# Tells the operator's flwr commands where the SuperLink is, once: writes the connection NAME to Flower's config.toml.
#
#   deploy/connect.sh NAME HOST:PORT ca.crt
set -euo pipefail

[ $# = 3 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name=$1 address=$2
ca=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
[ -r "$ca" ] || { echo "connect.sh: cannot read $ca" >&2; exit 1; }
case "$name$address$ca" in
  *[\"\\]*) echo 'connect.sh: no " or \ in names, please' >&2; exit 1 ;;
esac

file=${FLWR_HOME:-$HOME/.flwr}/config.toml
mkdir -p "$(dirname "$file")"
if [ ! -e "$file" ]; then
  printf '[superlink]\ndefault = "%s"\n' "$name" >"$file"
elif grep -qF "[superlink.$name]" "$file"; then
  echo "connect.sh: $file has a connection $name already; edit it there" >&2
  exit 1
fi
printf '\n[superlink.%s]\naddress = "%s"\nroot-certificates = "%s"\n' "$name" "$address" "$ca" >>"$file"
echo "Wrote the connection $name to $file"
