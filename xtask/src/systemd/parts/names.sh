# Instances whose names have characters that systemd escapes.

install_package

# watches UNIT NAME: the instance, enabled as it is written, watches the interface.
watches() {
    local unit=$1 name=$2
    ip link add name "$name" type dummy
    systemctl enable --now "$unit"
    export name
    wait_told "$unit" '.event == "watching" and .ifindex > 0 and .interface == env.name'
    ip link delete "$name"
    wait_told "$unit" '.event == "deleted" and .interface == env.name'
    is "$(systemctl is-enabled "$unit")" enabled
    systemctl disable --now "$unit"
}

check 'ifmon@wg\x2dhome, escaped' watches 'ifmon@wg\x2dhome' wg-home
check 'ifmon@wg-home, as it is' watches ifmon@wg-home wg-home
check 'the same with more dashes' watches ifmon@a-b-c a-b-c
for name in wg.home wg_home wg@home 'wg+1' 'a$b' '$b' wgü "a'b" 'a"b' -x; do
    escaped=$(systemd-escape --template ifmon@.service -- "$name")
    check "$escaped for $name" watches "$escaped" "$name"
done

own_options() {
    ip link add name wg-home type dummy
    echo IFMON_OPTIONS=--backend=netlink > /etc/default/ifmon-wg-home
    for unit in 'ifmon@wg\x2dhome' ifmon@wg-home; do
        systemctl start "$unit"
        wait_told "$unit" '.event == "watching" and .backend == "netlink"'
        systemctl stop "$unit"
    done
}
check 'options are found by the name of the interface, whichever way the instance is written' own_options
