#!/usr/bin/env bash
# Azurite: Azure Blob storage for tests, without versions.
#
# usage: azurite.sh start|stop DIR
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

VERSION=3.35.0

install_azurite() {
    [ "$(cat "$CACHE/azurite/installed" 2>/dev/null)" != "$VERSION" ] || return 0
    mkdir -p "$CACHE/azurite"
    npm install --silent --no-fund --no-audit --prefix "$CACHE/azurite" "azurite@$VERSION"
    echo "$VERSION" >"$CACHE/azurite/installed"
}

server_start() {
    packages curl openssl
    command -v npm >/dev/null || packages nodejs npm
    one_at_a_time install_azurite
    local port account=keepwell key
    port=$(free_port)
    key=$(openssl rand -base64 64 | tr -d '\n')
    mkdir -p "$DIR/data"
    AZURITE_ACCOUNTS="$account:$key" background azurite "$CACHE/azurite/node_modules/.bin/azurite-blob" \
        --blobHost 127.0.0.1 --blobPort "$port" --location "$DIR/data" --skipApiVersionCheck --silent --disableTelemetry
    wait_for 120 azurite answers "http://127.0.0.1:$port/"
    create_container "http://127.0.0.1:$port" "$account" "$key" keepwell
    setting ENDPOINT "http://127.0.0.1:$port/$account"
    setting BUCKET keepwell
    setting ACCOUNT "$account"
    setting KEY "$key"
    setting PORT "$port"
    # What a backup host should have: it may read, create and list, and neither write nor delete.
    setting CREATE_ONLY "$(signature "$account" "$key" keepwell rcl)"
}

# A shared access signature of a container, with some permissions.
signature() {
    local account=$1 key=$2 name=$3 permissions=$4 version=2020-12-06 end=2099-01-01T00:00:00Z text
    # Start, identifier, address, protocol, snapshot, scope and five headers are left out.
    text=$(printf '%s\n\n%s\n/blob/%s/%s\n\n\n\n%s\nc\n\n\n\n\n\n\nx' \
        "$permissions" "$end" "$account" "$name" "$version")
    printf 'sv=%s&sr=c&sp=%s&se=%s&sig=%s' "$version" "$permissions" "${end//:/%3A}" \
        "$(printf %s "${text%x}" | sign "$key" | sed 's/+/%2B/g; s|/|%2F|g; s/=/%3D/g')"
}

# The HMAC of standard input under the key of the account.
sign() {
    openssl dgst -sha256 -mac HMAC -macopt "hexkey:$(printf %s "$1" | base64 -d | od -An -v -tx1 | tr -d ' \n')" -binary | base64
}

# A `Create Container` request, signed with the shared key.
create_container() {
    local endpoint=$1 account=$2 key=$3 name=$4 date text signature
    date=$(LC_ALL=C TZ=GMT date '+%a, %d %b %Y %H:%M:%S GMT')
    text=$(printf 'PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:2021-12-02\n/%s/%s/%s\nrestype:container' \
        "$date" "$account" "$account" "$name")
    signature=$(printf %s "$text" | sign "$key")
    curl -sSf -o /dev/null -X PUT -H "x-ms-date: $date" -H 'x-ms-version: 2021-12-02' -H 'Content-Length: 0' \
        -H "Authorization: SharedKey $account:$signature" "$endpoint/$account/$name?restype=container"
}

server_stop() { end_processes azurite; }

main "$@"
