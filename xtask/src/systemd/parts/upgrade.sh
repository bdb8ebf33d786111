# What became of wg0 while ifmon was not running is told when it runs again: once, and as what it was.

install_package
ip netns add elsewhere
# As every host has one: a link with a hardware address, by which ifmon sees that /sys shows the links of its namespace.
ip link add eth0 type dummy
# Between the end of one run and the begin of the next.
drop_in ifmon@wg0.service << 'END'
[Service]
ExecStopPost=+/bin/sh -c 'if [ -e /run/meanwhile ]; then sh -x /run/meanwhile && rm /run/meanwhile; fi'
END

# Each way for a run to end and another one to begin.
upgraded() {
    local version
    version=$(dpkg-query --show --showformat '${Version}' ifmon)
    case $version in
    *+newer) dpkg --install /run/machine/ifmon.deb ;;
    *) dpkg --install /run/machine/newer.deb ;;
    esac
    [ "$(dpkg-query --show --showformat '${Version}' ifmon)" != "$version" ]
}
restarted() {
    systemctl restart ifmon@wg0
}
stopped_and_started() {
    systemctl stop ifmon@wg0
    systemctl start ifmon@wg0
}
killed() {
    local before
    before=$(invocation ifmon@wg0)
    kill -KILL "$(main_pid ifmon@wg0)"
    again() { [ "$(invocation ifmon@wg0)" != "$before" ] && systemctl --quiet is-active ifmon@wg0; }
    until_true again
}

# begin: a run of ifmon that has just begun to watch a wg0.
begin() {
    rm -f /run/meanwhile
    ip link delete wg0 || true
    ip link delete wg1 || true
    ip -netns elsewhere link delete wg0 || true
    ip link add wg0 type wireguard
    systemctl restart ifmon@wg0
    wait_told ifmon@wg0 '.event == "watching" and .ifindex > 0'
}

# lines: all that the present run tells, which is ended for it.
lines() {
    local run
    run=$(invocation ifmon@wg0)
    systemctl stop ifmon@wg0
    last() { told_in_run "$run" '.event == "stopped"' | grep .; }
    until_true last
    told_in_run "$run" true | jq --raw-output --slurp \
        'map(.event + (if .recovered then " (recovered)" else "" end) + (if .to then " to " + .to else "" end)) | join(", ")'
}

# meanwhile WAY COMMANDS LINES
meanwhile() {
    begin
    echo "$2" > /run/meanwhile
    "$1"
    [ ! -e /run/meanwhile ]
    is "$(lines)" "$3"
}

for way in upgraded restarted stopped_and_started killed; do
    check "$way, wg0 left alone" meanwhile $way : 'watching, stopped'
    check "$way, wg0 replaced" meanwhile $way 'ip link delete wg0; ip link add wg0 type wireguard' \
        'watching, recreated (recovered), stopped'
    check "$way, wg0 renamed" meanwhile $way 'ip link set wg0 name wg1' 'watching, renamed (recovered) to wg1, stopped'
    # To look into another namespace takes CAP_SYS_ADMIN, which the unit does not have: it is gone, and that is all.
    check "$way, wg0 moved" meanwhile $way 'ip link set wg0 netns elsewhere' 'watching, deleted (recovered), stopped'
    check "$way, wg0 deleted" meanwhile $way 'ip link delete wg0' 'watching, deleted (recovered), stopped'
done

same_index() {
    local ifindex
    begin
    ifindex=$(cat /sys/class/net/wg0/ifindex)
    echo "ip link delete wg0; ip link add wg0 index $ifindex type wireguard" > /run/meanwhile
    restarted
    is "$(lines)" 'watching, recreated (recovered), stopped'
}
check 'replaced by another device with the same index' same_index

# told_before COMMANDS EVENT LINES: what was told of before the kill is not told again.
told_before() {
    begin
    sh -c "$1"
    wait_told ifmon@wg0 ".event == \"$2\""
    killed
    is "$(lines)" 'watching, stopped'
}
check 'a deletion that was told before a kill is not told again' told_before 'ip link delete wg0' deleted
check 'a device that was told before a kill is not told again' told_before \
    'ip link delete wg0; ip link add wg0 type wireguard' recreated
