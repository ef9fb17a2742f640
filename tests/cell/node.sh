#!/bin/bash
# One instance: first process of PID, mount, UTS and network namespaces of its own. Its root is this
# machine's, with changes in memory; its home is the node image, also with changes in memory.
# Reads: IMAGE BASE ID IP GATEWAY NODE_USER PUBLIC_KEY HOST_KEY BINDS (one path a line) NODE_ENV BOOT_SECONDS
set -euo pipefail
mount --make-rprivate /

# Joined to the cell by a pair of virtual interfaces. /proc is still the cell's: process 1 is in its
# network namespace.
number=${ID#i-}; outside=v$((16#$number)); cell=/proc/1/ns/net
ip link set lo up
ip link add eth0 type veth peer name "$outside" netns "$cell"
nsenter --net="$cell" bash -euc "ip link set $outside up; ip route add $IP/32 dev $outside"
ip address add "$IP/32" dev eth0
ip link set eth0 up
ip route add "$GATEWAY" dev eth0
ip route add default via "$GATEWAY" src "$IP"

# overlayfs refuses changes that lie inside of what is below: they are on a tmpfs of this namespace.
changes=$(mktemp -d --tmpdir=/dev/shm); mount -t tmpfs -o size=6g tmpfs "$changes"
mkdir "$changes"/{up,work,home-up,home-work,root}; root=$changes/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$changes/up,workdir=$changes/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=4g tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/tmp"; chmod 1777 "$root/tmp"
mount -t tmpfs tmpfs "$root/run"; mkdir "$root/run/sshd"
mkdir -p "$root$BASE"; mount -t tmpfs -o mode=755 tmpfs "$root$BASE"  # a node sees nothing of its cloud
mkdir -p "$root$NODE_HOME"
mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=$changes/home-up,workdir=$changes/home-work" "$root$NODE_HOME"

# The project's environment and checkout, where they are here, wherever that is.
while read -r path; do
  mkdir -p "$root$path"
  mount --bind "$path" "$root$path"; mount -o remount,ro,bind "$root$path"
  parent=$(dirname "$path")
  while [ "$parent" != / ]; do chmod o+x "$root$parent"; parent=$(dirname "$parent"); done
done <<<"$BINDS"

name=ip-${IP//./-}; hostname "$name"; echo "$name" >"$root/etc/hostname"
printf '127.0.0.1 localhost\n%s %s\n169.254.169.254 metadata.google.internal\n' "$IP" "$name" >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf"; echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
# sudo takes the first name of a number: whoever has 1000 here must not be there.
sed -i -e "/^$NODE_USER:/d" -e '/^[^:]*:[^:]*:1000:/d' "$root"/etc/{passwd,group}; sed -i "/^$NODE_USER:/d" "$root/etc/shadow"
echo "$NODE_USER:x:1000:1000::$NODE_HOME:/bin/bash" >>"$root/etc/passwd"
echo "$NODE_USER:x:1000:" >>"$root/etc/group"
echo "$NODE_USER:*:19000:0:99999:7:::" >>"$root/etc/shadow"  # '!' would be locked, for keys too
mkdir -p "$root/etc/sudoers.d"; echo "$NODE_USER ALL=(ALL) NOPASSWD:ALL" >"$root/etc/sudoers.d/90-node"
chmod 440 "$root/etc/sudoers.d/90-node"
mkdir -p "$root$NODE_HOME/.ssh"; echo "$PUBLIC_KEY" >"$root$NODE_HOME/.ssh/authorized_keys"
chown -R 1000:1000 "$root$NODE_HOME/.ssh"; chown 1000:1000 "$root$NODE_HOME"; chmod 700 "$root$NODE_HOME/.ssh"
install -m 600 "$HOST_KEY" "$root/etc/ssh/node_key"
cat >"$root/etc/ssh/sshd_config" <<CONFIG
Port 22
HostKey /etc/ssh/node_key
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
StrictModes no
MaxSessions 200
MaxStartups 150:30:200
Subsystem sftp internal-sftp
SetEnv $NODE_ENV
CONFIG
sleep "$BOOT_SECONDS"
exec chroot "$root" /usr/sbin/sshd -D -e
