# What the server scripts share. Sourced; each of them defines `server_start` and `server_stop`, which find the
# directory of their server in $DIR, and ends with `main "$@"`.
set -euo pipefail

HERE=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

# Node modules and Python environments, which outlive a server.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/keepwell-servers

main() {
    if [ $# -lt 2 ] || { [ "$1" != start ] && [ "$1" != stop ]; }; then
        echo "usage: $0 start|stop DIR" >&2
        exit 2
    fi
    local verb=$1
    DIR=$(realpath -m "$2")
    shift 2
    if [ "$verb" = stop ]; then
        server_stop
        return
    fi
    [ ! -e "$DIR/pids" ] || fail "a server of $DIR is running, or died: stop it first"
    mkdir -p "$DIR/pids"
    trap 'status=$?; if [ $status != 0 ]; then server_stop || true; rm -rf "$DIR/pids"; fi' EXIT
    # What daemons and installers say must not mix with the settings on standard output.
    exec 3>&1 1>&2
    server_start "$@"
}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Prints one line of settings for the caller.
setting() { echo "$1=$2" >&3; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# One installation at a time, also when several scripts start together.
one_at_a_time() {
    mkdir -p "$CACHE"
    (
        flock 9
        "$@" 9>&-
    ) 9>"$CACHE/lock"
}

# Installs the Debian packages that are missing, without starting their services. In a subshell of its own, for its trap.
packages() { one_at_a_time install_packages "$@"; }

install_packages() {
    local package missing=() policy=/usr/sbin/policy-rc.d
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if [ ! -e $policy ]; then
        # However it ends, by Ctrl-C too: while the file is there no package starts its service on this machine.
        trap "as_root rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Makes the Python environment NAME with the given requirements and leaves its path in $VENV.
python_environment() {
    local name=$1
    shift
    VENV=$CACHE/$name
    packages python3 python3-venv
    one_at_a_time install_python "$VENV" "$@"
}

install_python() {
    local venv=$1
    shift
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$*" ]; then
        rm -rf "$venv"
        /usr/bin/python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"
        echo "$*" >"$venv/installed"
    fi
}

# A TCP port on loopback that nobody listens on.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 8<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# A random secret of 40 hexadecimal digits.
secret() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }

# Runs a server in the background, as NAME, with its output in a log file.
background() {
    local name=$1
    shift
    setsid "$@" </dev/null >"$DIR/$name.log" 2>&1 3>&- &
    echo $! >"$DIR/pids/$name"
}

# Waits until the command succeeds; gives up after SECONDS.
wait_for() {
    local seconds=$1 what=$2 end
    shift 2
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            tail -n 20 "$DIR"/*.log >&2 2>/dev/null || true
            fail "$what does not answer after $seconds seconds"
        fi
        sleep 0.1
    done
}

answers() { curl -s -o /dev/null --max-time 5 "$1"; }

# Ends the processes whose ids are in $DIR/pids, in the given order, and waits for them.
end_processes() {
    local name pid tries
    for name in "$@"; do
        pid=$(cat "$DIR/pids/$name" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for ((tries = 0; tries < 100; tries++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$DIR/pids"
}
