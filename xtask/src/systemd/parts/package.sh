# The package from its installation to its purge.

# What is there, but for what each boot and each call of dpkg and the journal changes.
files() {
    find / -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /var/lib/systemd \
        -o -path /tmp -o -path /var/tmp \) -prune -o -print | sort
}
files > /run/before

installs() {
    dpkg --install /run/machine/ifmon.deb
    dpkg --verify ifmon
    is "$(dpkg --verify ifmon)" ''
    [ -s /var/lib/dpkg/info/ifmon.md5sums ]
    is "$(systemctl list-units --all --no-legend 'ifmon*')" ''
    # Read without a daemon-reload of our own.
    is "$(property ifmon@veth0 LoadState)" loaded
    is "$(property ifmon@veth0 NeedDaemonReload)" no
}
check 'installed: every file as packed, nothing started' installs

upgrades() {
    local before agent
    ip link add veth0 type veth peer name veth1
    systemctl enable --now ifmon@veth0 ifmon@veth1
    systemctl start ifmon@veth2
    systemctl stop ifmon@veth2
    systemctl disable --now ifmon@veth1
    before=$(invocation ifmon@veth0)
    systemctl enable --now ifmon.socket
    systemctl start ifmon.service
    agent=$(invocation ifmon.service)
    dpkg --install /run/machine/newer.deb
    case "$(dpkg-query --show --showformat '${Version}' ifmon)" in *+newer) ;; *) return 1 ;; esac
    [ "$(invocation ifmon@veth0)" != "$before" ]
    is "$(property ifmon@veth0 ActiveState)" active
    wait_told ifmon@veth0 '.event == "watching"'
    is "$(property ifmon@veth0 NeedDaemonReload)" no
    # Its program is the file that is there now.
    is "$(readlink "/proc/$(main_pid ifmon@veth0)/exe")" /usr/bin/ifmon
    # So is that of the agent.
    is "$(property ifmon.service ActiveState) $(property ifmon.socket ActiveState)" 'active active'
    [ "$(invocation ifmon.service)" != "$agent" ]
    is "$(readlink "/proc/$(main_pid ifmon.service)/exe")" /usr/bin/ifmon
    # What did not run does not run now.
    is "$(property ifmon@veth1 ActiveState) $(property ifmon@veth2 ActiveState)" 'inactive inactive'
}
check 'upgraded: what ran is running anew, and nothing else' upgrades

removes() {
    echo IFMON_OPTIONS=--nonsense > /etc/default/ifmon-veth9
    ! systemctl start ifmon@veth9
    rm /etc/default/ifmon-veth9
    dpkg --remove ifmon > /run/removed 2>&1
    is "$(grep Failed /run/removed)" ''
    is "$(pgrep --exact ifmon)" ''
    # The link of what was enabled keeps its name in the manager's list until the purge, and no more than that.
    is "$(systemctl list-units --all --no-legend --state active,activating,failed 'ifmon*')" ''
    [ ! -e /usr/bin/ifmon ] && [ ! -e /usr/lib/systemd/system/ifmon@.service ]
    # What was enabled is so again when it is installed again.
    dpkg --install /run/machine/ifmon.deb
    is "$(systemctl is-enabled ifmon@veth0)" enabled
    systemctl start ifmon@veth0
    wait_told ifmon@veth0 '.event == "watching"'
}
check 'removed: nothing runs, and what was enabled is still to be when it comes back' removes

purges() {
    [ -d /var/lib/private/ifmon ]
    dpkg --purge ifmon
    is "$(pgrep --exact ifmon)" ''
    files > /run/after
    diff /run/before /run/after
    [ ! -e /run/ifmon ]
    is "$(systemctl list-units --all --no-legend 'ifmon@*')" ''
    is "$(find /etc/systemd -xtype l)" ''
}
check 'purged: nothing is left behind' purges
