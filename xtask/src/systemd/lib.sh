# What the parts are written with. Bash, as wg-quick is.

set -u
cd /run/machine || exit
export SYSTEMD_PAGER='' SYSTEMD_COLORS=0

# check NAME COMMAND...: a function, mostly, that stops at the first command that fails.
check() {
    local name=$1 log=/run/check.log
    shift
    (
        set -ex
        "$@"
    ) > "$log" 2>&1 < /dev/null
    if [ $? = 0 ]; then
        echo "  passed: $name"
    else
        echo "  FAILED: $name"
        journalctl --no-hostname --lines 10 >> "$log"
        sed 's/^/    | /' "$log"
    fi
}

finish() {
    echo "  done"
}

# until_true COMMAND...: waits for a condition; a minute is many times what any of them takes.
until_true() {
    { set +x; } 2> /dev/null
    local end=$((SECONDS + 60))
    until "$@" > /dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "still not true: $*"
            "$@"
            return 1
        fi
        sleep 0.1
    done
    set -x
}

is() {
    [ "$1" = "$2" ] || {
        echo "not '$2'"
        return 1
    }
}

property() {
    systemctl show --property "$2" --value -- "$1"
}

invocation() {
    property "$1" InvocationID
}

# told UNIT FILTER: the JSON lines of the unit's present run that jq's FILTER lets through. The line that is being
# written is whole in the journal or not there.
told() {
    told_in_run "$(invocation "$1")" "$2"
}

# told_in_run RUN FILTER: the same of a run that may be over. The manager forgets the last run of a unit that is stopped.
told_in_run() {
    journalctl --output cat "_SYSTEMD_INVOCATION_ID=$1" SYSLOG_IDENTIFIER=ifmon |
        grep '^{' | jq --compact-output "select($2)"
}

tells() {
    [ -n "$(told "$@")" ]
}

# warnings UNIT: what its present run said at the level of a warning and above.
warnings() {
    journalctl --output cat --priority warning "_SYSTEMD_INVOCATION_ID=$(invocation "$1")"
}

# wait_told UNIT FILTER
wait_told() {
    until_true tells "$@"
}

# drop_in UNIT: its standard input becomes a drop-in of the unit.
drop_in() {
    mkdir -p "/etc/systemd/system/$1.d"
    cat > "/etc/systemd/system/$1.d/test.conf"
    systemctl daemon-reload
}

main_pid() {
    property "$1" MainPID
}

install_package() {
    dpkg --install /run/machine/ifmon.deb > /run/dpkg.log 2>&1 || cat /run/dpkg.log
}
