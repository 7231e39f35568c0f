#!/usr/bin/env bash
# Apache's WebDAV server on a port of its own, with a user and a password.
#
# usage: webdav.sh start|stop DIR
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODULES=/usr/lib/apache2/modules

server_start() {
    packages apache2-bin apache2-utils curl
    local port password module run_as=
    port=$(free_port)
    password=$(secret)
    mkdir -p "$DIR/data" "$DIR/dav"
    if [ "$(id -u)" = 0 ]; then
        # Apache gives up root's rights, and must still reach its directories.
        run_as=$'User www-data\nGroup www-data'
        chmod 711 "$DIR"
        chown www-data:www-data "$DIR/data" "$DIR/dav"
    fi
    htpasswd -i -c -B "$DIR/users" keepwell <<<"$password" 2>/dev/null
    chmod 644 "$DIR/users"
    {
        for module in mpm_event authn_core authn_file authz_core authz_user auth_basic dav dav_fs; do
            echo "LoadModule ${module}_module $MODULES/mod_$module.so"
        done
        cat <<X
ServerRoot $DIR
ServerName 127.0.0.1
Listen 127.0.0.1:$port
PidFile $DIR/httpd.pid
ErrorLog $DIR/error.log
LogLevel warn
DocumentRoot $DIR/data
DavLockDB $DIR/dav/lock
DavDepthInfinity on
$run_as
<Directory $DIR/data>
    Dav on
    AuthType Basic
    AuthName keepwell
    AuthUserFile $DIR/users
    Require valid-user
</Directory>
X
    } >"$DIR/httpd.conf"
    background apache /usr/sbin/apache2 -D FOREGROUND -f "$DIR/httpd.conf"
    wait_for 120 apache answers "http://127.0.0.1:$port/"
    setting ENDPOINT "http://127.0.0.1:$port"
    setting USER keepwell
    setting PASSWORD "$password"
    setting ROOT "$DIR/data"
    setting PORT "$port"
}

server_stop() { end_processes apache; }

main "$@"
