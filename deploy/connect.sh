#!/usr/bin/env bash
# Writes the connection NAME to Flower's config.toml, once, so that the operator's flwr commands find the SuperLink.
#
#   deploy/connect.sh NAME HOST:PORT ca.crt
set -euo pipefail

[ $# = 3 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name=$1 address=$2
ca=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
[ -r "$ca" ] || { echo "connect.sh: cannot read $ca" >&2; exit 1; }
case "$name$address$ca" in
  *[\"\\]*) echo 'connect.sh: " and \ are not allowed in arguments; choose other names' >&2; exit 1 ;;
esac

file=${FLWR_HOME:-$HOME/.flwr}/config.toml
mkdir -p "$(dirname "$file")"
if [ ! -e "$file" ]; then
  printf '[superlink]\ndefault = "%s"\n' "$name" >"$file"
elif grep -qF "[superlink.$name]" "$file"; then
  echo "connect.sh: $file already has a connection $name; edit it there" >&2
  exit 1
fi
printf '\n[superlink.%s]\naddress = "%s"\nroot-certificates = "%s"\n' "$name" "$address" "$ca" >>"$file"
echo "Wrote the connection $name to $file"
