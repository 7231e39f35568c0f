#!/usr/bin/env bash
# OpenSSH's SFTP server on a port of its own, for the user who runs this, with a fresh host key and a fresh client key. On a
# second port it has no hard links, as servers of others have none.
#
# usage: sftp.sh start|stop DIR
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

server_start() {
    packages openssh-server openssh-sftp-server openssh-client
    local port plain_port user host_key
    port=$(free_port)
    until plain_port=$(free_port) && [ "$plain_port" != "$port" ]; do :; done
    user=$(id -un)
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    mkdir -p "$DIR/data"
    ssh-keygen -q -t ed25519 -N '' -C server -f "$DIR/host_key"
    ssh-keygen -q -t ed25519 -N '' -C client -f "$DIR/client_key"
    cp "$DIR/client_key.pub" "$DIR/authorized_keys"
    host_key=$(cut -d' ' -f1,2 "$DIR/host_key.pub")
    printf '[127.0.0.1]:%s %s\n' "$port" "$host_key" "$plain_port" "$host_key" >"$DIR/known_hosts"
    cat >"$DIR/sshd_config" <<X
Port $port
Port $plain_port
ListenAddress 127.0.0.1
HostKey $DIR/host_key
PidFile none
AuthorizedKeysFile $DIR/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
ForceCommand internal-sftp
Match LocalPort $plain_port
    ForceCommand internal-sftp -P hardlink
X
    background sshd /usr/sbin/sshd -D -e -f "$DIR/sshd_config"
    wait_for 120 sshd log_in "$port" "$user"
    setting HOST 127.0.0.1
    setting PORT "$port"
    setting PLAIN_PORT "$plain_port"
    setting USER "$user"
    setting KEY_FILE "$DIR/client_key"
    setting KNOWN_HOSTS "$DIR/known_hosts"
    setting ROOT "$DIR/data"
}

log_in() {
    echo pwd | sftp -q -b - -P "$1" -i "$DIR/client_key" -o "UserKnownHostsFile=$DIR/known_hosts" -o BatchMode=yes \
        -o StrictHostKeyChecking=yes "$2@127.0.0.1"
}

server_stop() { end_processes sshd; }

main "$@"
