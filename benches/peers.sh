#!/usr/bin/env bash
# Fetches the programs that compare.sh measures us against, each under DIR/bin. Nothing is installed on the system.
#
# usage: benches/peers.sh DIR [--rustic]       --rustic builds rustic with cargo: 12 to 22 minutes on two cores
set -euo pipefail
dir=$(realpath -m "${1:?usage: benches/peers.sh DIR [--rustic]}")
mkdir -p "$dir/bin"

# A .deb of another suite, extracted; the system's own apt state stays untouched.
fetch_deb() { # SUITE PACKAGE
    local state=$dir/apt-$1 mirror
    mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
    mirror=${mirror:-$(awk '$1=="deb"{for(i=2;i<=NF;i++) if($i ~ /^http/){print $i; exit}}' /etc/apt/sources.list)}
    mkdir -p "$state"/{etc,lists/partial,archives/partial}
    : >"$state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$state/etc/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$state/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State=$state" -o "Dir::State::lists=$state/lists"
        -o "Dir::State::status=$state/status" -o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives"
        -o Acquire::Languages=none -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update -qq
    (cd "$state/archives" && apt-get "${options[@]}" download -qq "$2")
    dpkg-deb -x "$state/archives/$2"_*.deb "$dir/$2"
}

restic() {
    fetch_deb trixie restic
    ln -sf "$dir/restic/usr/bin/restic" "$dir/bin/restic"
    "$dir/bin/restic" version
}

# 1.4 is built by pip (about 90 s; needs the headers); without them Debian's 1.2 takes its place.
borg() {
    local headers=(python3-venv python3-dev libacl1-dev liblz4-dev libzstd-dev libxxhash-dev libssl-dev pkg-config gcc)
    if [ "$(id -u)" = 0 ]; then apt-get install -y -qq --no-install-recommends "${headers[@]}" >/dev/null; fi
    if /usr/bin/python3 -m venv "$dir/borg" && "$dir/borg/bin/pip" install -q 'borgbackup==1.4.*'; then
        ln -sf "$dir/borg/bin/borg" "$dir/bin/borg"
    else
        apt-get install -y -qq borgbackup >/dev/null
        ln -sf /usr/bin/borg "$dir/bin/borg"
    fi
    "$dir/bin/borg" --version
}

rustic() {
    cargo install --locked --root "$dir/rustic" rustic-rs
    ln -sf "$dir/rustic/bin/rustic" "$dir/bin/rustic"
    "$dir/bin/rustic" --version
}

restic
borg
if [ "${2:-}" = --rustic ]; then rustic; fi
