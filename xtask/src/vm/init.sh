#!/bin/busybox sh
# The first process of the emulated machine: gets it ready, runs /command, and hands over its output and its end.

export PATH=/usr/local/bin:/bin HOME=/root TERM=dumb
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
# Complains of `ip`, which is there, and stays.
busybox --install -s /bin 2>/dev/null

while read -r module options; do
    # $options is split into words on purpose.
    insmod "/lib/modules/$module.ko" $options
done < /lib/modules/order

# The ports appear some time after their driver. They are no terminals: bytes go through as they are.
until [ -c /dev/vport0p3 ]; do sleep 0.01; done

if [ -e /system.tar ]; then
    mkdir /system
    mount -t tmpfs -o mode=755,size=100% tmpfs /system
    tar -x -f /system.tar -C /system
    rm /system.tar
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/systemd/system
    mv /machine /run/machine
    # The command is a service, and its end is the machine's.
    cat > /run/systemd/system/command.service <<'END'
[Unit]
Description=The command that this machine is for
[Service]
Type=exec
ExecStartPre=/bin/sh -c 'echo ready > /dev/vport0p3'
ExecStart=/bin/sh /run/machine/command
ExecStopPost=/bin/sh -c 'echo "exit $EXIT_STATUS" > /dev/vport0p3; systemctl poweroff -ff'
StandardOutput=file:/dev/vport0p1
StandardError=file:/dev/vport0p2
END
    for dir in /proc /sys /dev /run; do mount --move "$dir" "/system$dir"; done
    exec switch_root /system /sbin/init
fi

mkdir -p /dev/pts /dev/shm /run /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
# Not every kernel has all of these.
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
ip link set lo up

exec 3> /dev/vport0p3
echo ready >&3
# In a session of its own and without our descriptors. The subshell is there because a shell says what signal ended a
# command on the command's own standard error.
(exec setsid /bin/sh /command < /dev/null > /dev/vport0p1 2> /dev/vport0p2 3>&-)
echo "exit $?" >&3
poweroff -f
