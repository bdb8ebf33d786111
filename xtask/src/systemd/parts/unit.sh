# One instance of the unit, from its start to its end.

install_package
ip link add veth0 type veth peer name veth1

starts() {
    systemctl start ifmon@veth0
    # The start is over once the watch is live.
    wait_told ifmon@veth0 '.event == "watching" and .ifindex > 0'
    is "$(property ifmon@veth0 StatusText)" 'watching 1 interface by fentry'
}
check 'a start is over when the watch is live' starts

healthy() {
    is "$(warnings ifmon@veth0)" ''
}
check 'a healthy start has no warning' healthy

told_at_once() {
    ip link set veth0 name other
    wait_told ifmon@veth0 '.event == "renamed" and .to == "other" and .by.comm == "ip"'
    ip link set other name veth0
    wait_told ifmon@veth0 '.event == "returned"'
}
check 'changes are told by fentry, with who made them' told_at_once

asked_for() {
    local found
    found=$(journalctl --output json IFMON_INTERFACE=veth0 IFMON_EVENT=renamed IFMON_BY_COMM=ip PRIORITY=5)
    is "$(jq --raw-output .IFMON_TO <<< "$found")" other
    is "$(jq --raw-output ._SYSTEMD_UNIT <<< "$found")" ifmon@veth0.service
}
check 'the journal can be asked for what happened to one interface' asked_for

confined() {
    local status
    status=/proc/$(main_pid ifmon@veth0)/status
    # CAP_BPF alone, which has the number 39.
    is "$(awk '/^CapEff/ { print $2 }' "$status")" 0000008000000000
    is "$(awk '/^NoNewPrivs/ { print $2 }' "$status")" 1
    [ "$(awk '/^Uid/ { print $2 }' "$status")" != 0 ]
}
check 'it runs as a user of its own with one capability' confined

restarts() {
    local before
    before=$(invocation ifmon@veth0)
    systemctl restart ifmon@veth0
    [ "$(invocation ifmon@veth0)" != "$before" ]
    wait_told ifmon@veth0 '.event == "watching"'
    until_true journalctl --output cat "_SYSTEMD_INVOCATION_ID=$before" \
        --grep '"event":"stopped".*"reason":"signal"'
}
check 'a restart ends one watch and begins another' restarts

came_back() {
    [ "$(property ifmon@veth0 NRestarts)" = 1 ] && systemctl --quiet is-active ifmon@veth0
}
killed() {
    kill -KILL "$(main_pid ifmon@veth0)"
    until_true came_back
    wait_told ifmon@veth0 '.event == "watching"'
}
check 'one that is killed comes back' killed

fed() {
    local first
    first=$(property ifmon@veth0 WatchdogTimestampMonotonic)
    fed_again() { [ "$(property ifmon@veth0 WatchdogTimestampMonotonic)" -gt "$first" ]; }
    until_true fed_again
    is "$(property ifmon@veth0 WatchdogUSec)" 1min
}
check 'it says that it is alive' fed

hangs() {
    local before
    before=$(invocation ifmon@veth0)
    kill -STOP "$(main_pid ifmon@veth0)"
    replaced() { [ "$(invocation ifmon@veth0)" != "$before" ] && systemctl --quiet is-active ifmon@veth0; }
    # More than the unit's watchdog waits.
    sleep 90
    until_true replaced
    wait_told ifmon@veth0 '.event == "watching"'
    journalctl --output cat --unit ifmon@veth0 --grep 'Watchdog timeout'
}
check 'one that hangs is replaced' hangs

stops() {
    local last
    last=$(invocation ifmon@veth0)
    systemctl stop ifmon@veth0
    is "$(property ifmon@veth0 ActiveState)" inactive
    is "$(property ifmon@veth0 Result)" success
    is "$(property ifmon@veth0 ExecMainStatus)" 0
    journalctl --output cat "_SYSTEMD_INVOCATION_ID=$last" --grep '"event":"stopped"'
    is "$(systemctl list-units --all --failed --no-legend 'ifmon@*')" ''
}
check 'a stop is clean' stops

absent() {
    systemctl start ifmon@veth7
    wait_told ifmon@veth7 '.event == "watching" and .ifindex == null'
    ip link add veth7 type veth peer name veth8
    wait_told ifmon@veth7 '.event == "appeared"'
    systemctl stop ifmon@veth7
}
check 'an interface that does not exist is waited for' absent

# given_up INSTANCE STATUS: it failed so, and systemd does not try again.
given_up() {
    ! systemctl start "ifmon@$1"
    is "$(property "ifmon@$1" ExecMainStatus)" "$2"
    is "$(property "ifmon@$1" ActiveState) $(property "ifmon@$1" SubState)" 'failed failed'
    # Time enough for more attempts than there may be.
    sleep 60
    is "$(property "ifmon@$1" NRestarts)" 0
    systemctl reset-failed "ifmon@$1"
}
usage() {
    echo IFMON_OPTIONS=--nonsense > /etc/default/ifmon-veth7
    given_up veth7 2
}
check 'wrong usage is not tried again' usage
must_exist() {
    echo IFMON_OPTIONS=--must-exist > /etc/default/ifmon-nowhere
    given_up nowhere 3
}
check 'an interface that must exist and does not is not tried again' must_exist

options() {
    echo IFMON_OPTIONS=--backend=netlink > /etc/default/ifmon
    echo 'IFMON_OPTIONS="--backend=kprobe --exec '\''exit 7'\''"' > /etc/default/ifmon-veth7
    # Kprobes are refused without CAP_SYS_ADMIN as this is set.
    sysctl --quiet kernel.perf_event_paranoid=1
    systemctl start ifmon@veth0 ifmon@veth7
    wait_told ifmon@veth0 '.backend == "netlink"'
    wait_told ifmon@veth7 '.backend == "kprobe"'
    # The quotes kept the command together.
    hook_failed() { warnings ifmon@veth7 | grep 'exit status 7'; }
    until_true hook_failed
    systemctl stop ifmon@veth0 ifmon@veth7
    rm /etc/default/ifmon /etc/default/ifmon-veth7
}
check 'options of one instance stand in place of those of all' options

port() {
    echo IFMON_OPTIONS=--metrics=9101 > /etc/default/ifmon
    echo IFMON_OPTIONS= > /etc/default/ifmon-veth7
    systemctl start ifmon@veth0 ifmon@veth7
    wait_told ifmon@veth0 '.event == "watching"'
    wait_told ifmon@veth7 '.event == "watching"'
    exec 3<> /dev/tcp/127.0.0.1/9101
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    grep -q 'ifmon_up.*interface="veth0"' <&3
    exec 3>&-
    systemctl stop ifmon@veth0 ifmon@veth7
}
check 'a port that one instance has is no hindrance to another with options of its own' port

port_taken() {
    rm /etc/default/ifmon-veth7
    systemctl start ifmon@veth0
    ! timeout 10 systemctl start ifmon@veth7
    journalctl --output cat --unit ifmon@veth7 --priority err --grep '9101.*in use'
    # It is there as soon as the port is free.
    systemctl stop ifmon@veth0
    until_true systemctl --quiet is-active ifmon@veth7
    systemctl stop ifmon@veth7
    rm /etc/default/ifmon
}
check 'a port that is taken is named, and waited for' port_taken

netns_refused() {
    ip netns add web
    ip -netns web link add veth0 type veth peer name veth1
    echo 'IFMON_OPTIONS="--netns=web --backend=netlink"' > /etc/default/ifmon-veth0
    ! timeout 10 systemctl start ifmon@veth0
    systemctl stop ifmon@veth0
    journalctl --output cat --unit ifmon@veth0 --priority err --grep CAP_SYS_ADMIN
}
check 'a namespace without the capability for it: an error names the capability' netns_refused

# drop_in_after TEXT: the drop-in that the unit's comment has after TEXT.
drop_in_after() {
    sed -n "/^# $1/,/^# [^ ]*\$/p" /usr/lib/systemd/system/ifmon@.service |
        sed -n '/^#     \[Service\]/,/^#$/s/^#     //p'
}
netns_granted() {
    drop_in_after '--netns, and' | tee /dev/stderr | drop_in ifmon@veth0.service
    for backend in netlink fentry; do
        echo "IFMON_OPTIONS='--netns=web --backend=$backend'" > /etc/default/ifmon-veth0
        systemctl start ifmon@veth0
        wait_told ifmon@veth0 '.event == "watching" and .ifindex > 0'
        ip -netns web link set veth0 name other
        wait_told ifmon@veth0 '.event == "renamed"'
        ip -netns web link set other name veth0
        systemctl stop ifmon@veth0
    done
    rm -r /etc/systemd/system/ifmon@veth0.service.d /etc/default/ifmon-veth0
    systemctl daemon-reload
}
check "a namespace with the drop-in of the unit's comment" netns_granted

# The record of all namespaces, of which the unit may enter none.
recorded_everywhere() {
    echo 'IFMON_OPTIONS=--json --netns=*' > /etc/default/ifmon-record
    systemctl start ifmon-record
    wait_told ifmon-record '.event == "watching" and .pattern == "*" and .netns == null and .backend == "fentry"'
    ip netns add box
    ip -n box link add eth9 type veth peer name eth8
    wait_told ifmon-record '.event == "appeared" and .interface == "eth9" and .netns_name == "box" and .kind == "veth"'
    ip -n box link delete eth9
    until_true journalctl --quiet --lines 1 IFMON_EVENT=deleted IFMON_INTERFACE=eth9 IFMON_NETNS_NAME=box IFMON_BY_COMM=ip
    ip netns delete box
    # Nothing was lost.
    is "$(warnings ifmon-record | cut --delimiter '(' --fields 1)" \
        'network namespaces that may not be entered are watched from the next change in each on '
    systemctl stop ifmon-record
    is "$(property ifmon-record Result)" success
}
check 'the record of all namespaces has what happens in a new one' recorded_everywhere

# More often than the manager lets a unit fail, as a rule; the socket would go with it.
agent_mended() {
    echo IFMON_OPTIONS=--policy=watch=nobody > /etc/default/ifmon-agent
    systemctl start ifmon.socket
    # Whoever calls gives up after a while; it is tried again all the same.
    ! timeout 60 ifmon --quiet --backend agent --wait veth0
    has_failed_often() { [ "$(property ifmon.service NRestarts)" -gt 6 ]; }
    until_true has_failed_often
    is "$(property ifmon.socket ActiveState)" active
    rm /etc/default/ifmon-agent
    until_true systemctl --quiet is-active ifmon.service
    timeout 60 ifmon --quiet --backend agent --wait veth0 > /dev/null
    systemctl stop ifmon.socket ifmon.service
}
check 'an agent that cannot begin is there when it is mended' agent_mended
