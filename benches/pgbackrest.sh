#!/usr/bin/env bash
# Fetches the pgBackRest that postgres.sh measures us against, as DIR/bin/pgbackrest, out of Debian's packages of a later
# suite: unpacked, with a loader and libraries of its own. Nothing is installed on the system but `patchelf`.
#
# usage: benches/pgbackrest.sh DIR [SUITE]      default forky
set -euo pipefail
dir=$(realpath -m "${1:?usage: benches/pgbackrest.sh DIR [SUITE]}")
suite=${2:-forky}
state=$dir/apt
mkdir -p "$state"/{etc,lists/partial,archives/partial} "$dir/root" "$dir/bin"
: >"$state/status"
command -v patchelf >/dev/null || apt-get install -y -qq --no-install-recommends patchelf >/dev/null
mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no mirror of Debian in /etc/apt/sources.list.d/*.sources} $suite main" >"$state/etc/sources.list"
options=(-o "Dir::Etc::sourcelist=$state/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State=$state" -o "Dir::State::lists=$state/lists"
    -o "Dir::State::status=$state/status" -o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives"
    -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o APT::Sandbox::User=root)
apt-get "${options[@]}" update -qq
apt-get "${options[@]}" install -y -qq --download-only --no-install-recommends pgbackrest >/dev/null
for file in "$state"/archives/*.deb; do dpkg-deb -x "$file" "$dir/root"; done
rm -rf "$state"
library=$dir/root/usr/lib/x86_64-linux-gnu
patchelf --set-interpreter "$library/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$library" "$dir/root/usr/bin/pgbackrest"
ln -sf "$dir/root/usr/bin/pgbackrest" "$dir/bin/pgbackrest"
chmod -R a+rX "$dir"
"$dir/bin/pgbackrest" version
