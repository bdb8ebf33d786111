# The metrics of a unit, as Debian's Prometheus has them.

install_package
ip link add veth0 type veth peer name veth1
echo IFMON_OPTIONS=--metrics=9101 > /etc/default/ifmon-veth0
systemctl start ifmon@veth0

# An installer writes it.
echo '127.0.0.1 localhost' > /etc/hosts

# What docs/container-host.md has people write, and more often than once a minute.
cat > /run/prometheus.yml << 'END'
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: ifmon
    static_configs:
      - targets: ['localhost:9101']
END
systemd-run --quiet --unit prometheus /run/machine/prometheus --config.file=/run/prometheus.yml \
    --storage.tsdb.path=/run/prometheus --web.listen-address=127.0.0.1:9090

# asked QUERY: the value of the one series that it is about.
asked() {
    local query
    query=$(jq --null-input --raw-output --arg query "$1" '$query | @uri')
    exec 3<> /dev/tcp/127.0.0.1/9090
    printf 'GET /api/v1/query?query=%s HTTP/1.0\r\n\r\n' "$query" >&3
    sed '1,/^\r$/d' <&3 | jq --raw-output '.data.result | select(length == 1) | .[0].value[1]'
    exec 3>&-
}
says() {
    local found
    found=$(asked "$1")
    echo "$1: $found"
    is "$found" "$2"
}

taken() {
    until_true says 'up{job="ifmon"}' 1
    until_true says 'ifmon_up{interface="veth0"}' 1
    says 'ifmon_backend_info{backend="fentry"}' 1
}
check 'what a unit serves is taken' taken

alert='increase(ifmon_events_total{event="deleted"}[5m]) > bool 0'
alerts() {
    # There has to be one value for another to be more than it.
    until_true says "$alert" 0
    ip link delete veth0
    until_true says "$alert" 1
    says 'ifmon_up{interface="veth0"}' 0
    says 'ifmon_changes_lost_total' 0
}
check "the documents' alert sees the first deletion" alerts

systemctl stop prometheus ifmon@veth0
