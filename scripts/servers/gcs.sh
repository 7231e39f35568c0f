#!/usr/bin/env bash
# A Google Cloud Storage server for tests; it takes any token. See gcs_server.py.
#
# usage: gcs.sh start|stop DIR
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

server_start() {
    packages curl
    python_environment gcs 'gcp-storage-emulator==2026.7.19'
    local port
    port=$(free_port)
    background gcs "$VENV/bin/python" "$HERE/gcs_server.py" "$port" keepwell
    wait_for 120 gcs answers "http://127.0.0.1:$port/"
    setting ENDPOINT "http://127.0.0.1:$port"
    setting BUCKET keepwell
    setting PORT "$port"
}

server_stop() { end_processes gcs; }

main "$@"
