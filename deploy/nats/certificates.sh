#!/bin/sh
# certificates.sh DIRECTORY NAME...: make the certificates of a cluster, one for each role, and discard the authority's key.
#
# NAME is a name or an IP address by which members reach the broker. DIRECTORY gets the folders broker, member, acceptor and
# host, each with ca.crt, tls.crt and tls.key. All members may use the same certificate. To replace one, make all anew.
set -eu
umask 077
[ $# -ge 2 ] || { echo "usage: certificates.sh DIRECTORY NAME..." >&2; exit 2; }
directory=$1
shift
names=
for name in "$@"; do
    case $name in
        *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) names="$names${names:+,}IP:$name" ;;
        *) names="$names${names:+,}DNS:$name" ;;
    esac
done

authority=$(mktemp -d)
trap 'rm -rf "$authority"' EXIT
new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
new_key "$authority/ca.key"
openssl req -x509 -new -key "$authority/ca.key" -days 3650 -subj "/O=transform-gateway/CN=cluster authority" \
    -addext "keyUsage=critical,keyCertSign" -out "$authority/ca.crt"

for role in broker member acceptor host; do
    [ ! -e "$directory/$role/tls.key" ] || { echo "$directory/$role/tls.key exists: remove it first" >&2; exit 1; }
    (umask 022 && mkdir -p "$directory/$role")
    new_key "$directory/$role/tls.key"
    if [ $role = broker ]; then
        extensions="extendedKeyUsage=serverAuth
subjectAltName=$names"
    else
        extensions="extendedKeyUsage=clientAuth"
    fi
    echo "$extensions" >"$authority/extensions"
    openssl req -new -key "$directory/$role/tls.key" -subj "/O=transform-gateway/CN=$role" |
        openssl x509 -req -CA "$authority/ca.crt" -CAkey "$authority/ca.key" -CAcreateserial -days 3650 \
            -extfile "$authority/extensions" -out "$directory/$role/tls.crt" 2>/dev/null
    cp "$authority/ca.crt" "$directory/$role/ca.crt"
    chmod 644 "$directory/$role/tls.crt" "$directory/$role/ca.crt"
done
