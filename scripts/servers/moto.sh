#!/usr/bin/env bash
# moto: an S3 server for tests that accepts any secret, keeps versions, and knows storage classes with restore.
#
# usage: moto.sh start|stop DIR
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

server_start() {
    packages curl
    python_environment moto 'moto[s3,server]==5.1.16'
    local port
    port=$(free_port)
    background moto "$VENV/bin/python" "$(dirname "${BASH_SOURCE[0]}")/moto_server.py" "$port"
    wait_for 120 moto answers "http://127.0.0.1:$port/moto-api/"
    curl -sSf -o /dev/null -X PUT "http://127.0.0.1:$port/keepwell"
    curl -sSf -o /dev/null -X PUT "http://127.0.0.1:$port/versioned"
    curl -sSf -o /dev/null -X PUT "http://127.0.0.1:$port/versioned?versioning" -H 'Content-Type: application/xml' -d \
        '<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>'
    curl -sSf -o /dev/null -X PUT "http://127.0.0.1:$port/locked" -H 'x-amz-bucket-object-lock-enabled: true'
    setting ENDPOINT "http://127.0.0.1:$port"
    setting REGION us-east-1
    setting BUCKET keepwell
    setting VERSIONED_BUCKET versioned
    setting LOCKED_BUCKET locked
    setting ACCESS_KEY testing
    setting SECRET_KEY testing
    setting PORT "$port"
}

server_stop() { end_processes moto; }

main "$@"
