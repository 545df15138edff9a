#!/usr/bin/env bash
# Creates your own certificate authority and the SuperLink's certificate, once, on the server's machine.
#
#   deploy/certificates.sh FOLDER NAME...      NAME: address of the server for the sites: a host name, an IPv4 or an IPv6 address
#
# Writes ca.crt (for every site and operator), server.pem and server.key (for the SuperLink), and ca.key (keep it
# offline). 127.0.0.1, ::1 and localhost are always included, since the SuperLink's own processes connect to them;
# without them no run starts.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1
shift
command -v openssl >/dev/null || { echo "certificates.sh: needs openssl" >&2; exit 1; }
[ ! -e "$folder/ca.key" ] || { echo "certificates.sh: $folder/ca.key already exists; remove it to start again" >&2; exit 1; }

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for name in "$@"; do
  case "$name" in
    127.0.0.1 | ::1 | localhost) ;;
    *:*) name=${name#[}; names+=",IP:${name%]}" ;;
    *[!0-9.]*) names+=",DNS:$name" ;;
    *) names+=",IP:$name" ;;
  esac
done

umask 077
mkdir -p "$folder"
cd "$folder"
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj "/O=fed-a2v/CN=fed-a2v CA" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.crt
openssl ecparam -name prime256v1 -genkey -noout -out server.key
openssl req -new -key server.key -subj "/O=fed-a2v/CN=$1" -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -sha256 -out server.pem \
  -extfile <(printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\n' "$names") \
  2>/dev/null
rm -f server.csr ca.srl
chmod 644 ca.crt server.pem
echo "Wrote ca.crt, server.pem, server.key and ca.key to $PWD, for $names"
