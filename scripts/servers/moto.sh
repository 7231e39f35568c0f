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
    background moto "$VENV/bin/moto_server" -H 127.0.0.1 -p "$port"
    wait_for 60 moto answers "http://127.0.0.1:$port/moto-api/"
    curl -sSf -o /dev/null -X PUT "http://127.0.0.1:$port/keepwell"
    setting ENDPOINT "http://127.0.0.1:$port"
    setting REGION us-east-1
    setting BUCKET keepwell
    setting ACCESS_KEY testing
    setting SECRET_KEY testing
    setting PORT "$port"
}

server_stop() { end_processes moto; }

main "$@"
