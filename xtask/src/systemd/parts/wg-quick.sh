# A tunnel of wg-quick that somebody deletes, and that ifmon has restarted.

install_package
(
    umask 077
    cat > /etc/wireguard/wg0.conf << END
[Interface]
PrivateKey = $(wg genkey)
Address = 10.9.0.1/24
ListenPort = 51820

[Peer]
PublicKey = $(wg genkey | wg pubkey)
AllowedIPs = 10.9.0.2/32
END
)
# What the unit's comment says for a command that restarts another unit.
drop_in ifmon@wg0.service << 'END'
[Service]
DynamicUser=no
END

# messages ID: those of the manager about the tunnel, one JSON object a line (`systemd/sd-messages.h`).
messages() {
    journalctl --output json "UNIT=wg-quick@wg0.service" "MESSAGE_ID=$1"
}
starting() {
    messages 7d4958e842da4a758f6c1cdc7b36dcc5
}
started() {
    messages 39f53479d3a045ac8e11786248231fbf
}

is_up() {
    systemctl --quiet is-active wg-quick@wg0
    is "$(wg show wg0 listen-port)" 51820
    ip address show dev wg0 | grep -q 10.9.0.1/24
    ip route | grep -q '10.9.0.0/24 dev wg0'
}

# restarts COUNT: so many are over, and none is under way.
restarts() {
    is "$(starting | wc -l)" "$1"
    is "$(started | wc -l)" "$1"
}

# story BACKEND COMMAND
story() {
    local begun
    echo "IFMON_OPTIONS=\"--backend=$1 --on-restart='$2'\"" > /etc/default/ifmon-wg0
    systemctl stop ifmon@wg0
    # Not a restart: a tunnel that was replaced while ifmon was not running would be restarted once more.
    systemctl start wg-quick@wg0
    systemctl start ifmon@wg0
    wait_told ifmon@wg0 '.event == "watching" and .ifindex > 0'
    begun=$(started | wc -l)

    ip link delete wg0
    wait_told ifmon@wg0 '.event == "deleted"'
    until_true restarts $((begun + 1))
    # An hour later it is the only one, and has not been disturbed.
    sleep 3600
    restarts $((begun + 1))
    is_up

    # Nothing is left of the first that the second would have to wait for: less than the shortest wait that there is.
    ip link delete wg0
    until_true restarts $((begun + 2))
    local told acted
    told=$(told ifmon@wg0 '.event == "deleted"' | tail -n 1 | jq --raw-output .time)
    acted=$(starting | tail -n 1 | jq --raw-output ._SOURCE_REALTIME_TIMESTAMP)
    [ $((acted - $(date --date "$told" +%s%6N))) -lt 1000000 ]
    sleep 3600
    restarts $((begun + 2))
    is_up
}

deleted_meanwhile() {
    local begun
    begun=$(started | wc -l)
    systemctl stop ifmon@wg0
    ip link delete wg0
    systemctl start ifmon@wg0
    wait_told ifmon@wg0 '.event == "deleted" and .recovered and .restart'
    until_true restarts $((begun + 1))
    sleep 3600
    restarts $((begun + 1))
    is_up
}

# The stop deletes wg0 as well.
stays_stopped() {
    local begun
    begun=$(started | wc -l)
    systemctl stop wg-quick@wg0
    wait_told ifmon@wg0 '.event == "deleted" and .restart and .ifindex == '"$1"
    sleep 3600
    restarts "$begun"
    is "$(property wg-quick@wg0 ActiveState)" inactive
    # Nor is it restarted when it is started again.
    systemctl start wg-quick@wg0
    sleep 3600
    restarts $((begun + 1))
    is_up
}

for backend in netlink netlink-ebpf fentry; do
    check "$backend: one deletion, one restart" story $backend 'systemctl try-restart wg-quick@wg0'
    check "$backend: a tunnel that is stopped stays so" stays_stopped "$(cat /sys/class/net/wg0/ifindex)"
    check "$backend: one restart for a deletion while ifmon was not running" deleted_meanwhile
    check "$backend: one deletion, one restart by a command that returns at once" story $backend \
        'systemctl --no-block restart wg-quick@wg0'
    check "$backend: one deletion, one restart by a command that fails" story $backend 'systemctl restart wg-quick@wg0; exit 1'
    check "$backend: one deletion, one restart by a command that hangs" story $backend \
        'systemctl restart wg-quick@wg0; exec sleep infinity'
done
