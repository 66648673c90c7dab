#!/bin/sh
# Installs the package in a Debian of its own, runs the daemon as its unit would, and removes everything again.
#
#   unshare --mount --net --pid --fork --kill-child packaging/test.sh ROOT PACKAGE UNIT
#
# There is no systemd to run the unit: its user, its capabilities, its folders and its commands before the start are taken from the file and
# set up here, by setpriv(1). Its file-system and system-call sandbox is not tried; `systemd-analyze` judges that.
set -eu

root=$1 package=$2 unit=$3
say() { echo "==> $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
setting() { sed -n "s/^$1=//p" "$unit"; }
# What a package is to leave nothing of; its own records and backup copies of dpkg and adduser aside.
files() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./sys -o -path ./run -o -path ./tmp -o -path ./var/log \
        -o -path ./var/lib/dpkg -o -path ./var/cache \) -prune -o -print | grep -v -e '^./etc/.*-$' | sort)
}
network() { ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o link show lan0; }
wait_for() {
    what=$1; shift
    for _ in $(seq 600); do if "$@" 2>/dev/null; then return; fi; sleep 0.1; done
    cat "$root/tmp/redirectd.log" >&2; fail "no $what"
}

mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t tmpfs run "$root/run"
ip link set lo up
ip link add lan0 type veth peer name out0
ip link set lan0 up && ip link set out0 up
ip address add 10.20.0.1/16 dev lan0
sleep 2

files > "$root/tmp/before"
accounts=$(cat "$root/etc/passwd" "$root/etc/group")
network_before=$(network)

say "install"
cp "$package" "$root/tmp/redirectd.deb"
inside dpkg --install /tmp/redirectd.deb
[ -z "$(inside dpkg --verify redirectd)" ] || fail "files differ from the package's"
inside redirectd --check

say "start"
user=$(setting User)
capabilities=$(setting AmbientCapabilities)
[ "$capabilities" = "$(setting CapabilityBoundingSet)" ] || fail "two sets of capabilities"
set=$(echo "$capabilities" | sed 's/CAP_/+/g' | tr 'A-Z ' 'a-z,')
mkdir -p "$root/run/redirectd/bpf"
mount -t bpf -o mode=0755 bpf "$root/run/redirectd/bpf"
setting ExecStartPre | sed 's/^+//' | while read -r command; do inside $command; done
inside install -d -o "$user" -g "$user" -m "$(setting RuntimeDirectoryMode)" "/run/$(setting RuntimeDirectory)"
inside install -d -o "$user" -g "$user" -m "$(setting StateDirectoryMode)" "/var/lib/$(setting StateDirectory)"
cat >> "$root/etc/redirect/redirectd.toml" <<END
[relay]
listen = ["10.20.0.1:2525"]
[[interface]]
name = "lan0"
role = "subscriber"
foreign_sources = true
END
cat > "$root/tmp/notify.py" <<'END'
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
while True:
    print(listener.recv(4096).decode(), flush=True)
END
python3 "$root/tmp/notify.py" "$root/run/notify" > "$root/tmp/notified" &
wait_for "socket for notices" test -S "$root/run/notify"
start() {
    # Not by a function: its process is to become the daemon.
    chroot "$root" env -i NOTIFY_SOCKET=/run/notify WATCHDOG_USEC=1000000 setpriv --reuid "$user" --regid "$user" \
        --clear-groups --no-new-privs --inh-caps="-all,$set" --ambient-caps="-all,$set" --bounding-set="-all,$set" \
        "$(setting ExecStart)" > "$root/tmp/redirectd.log" 2>&1 &
    daemon=$!
    wait_for "status" inside redirect-ctl status > "$root/tmp/status"
    grep -q "interface lan0 *attached, tcx$" "$root/tmp/status" || { cat "$root/tmp/status"; fail "not attached"; }
}
start
wait_for "READY=1" grep -q "^READY=1" "$root/tmp/notified"
wait_for "watchdog" grep -q "^WATCHDOG=1" "$root/tmp/notified"
[ "$(stat -c %u "$root/proc/$daemon")" != 0 ] || fail "it runs as root"
granted=$(sed -n 's/^CapEff:\t//p' "$root/proc/$daemon/status")
# CAP_NET_ADMIN 12, CAP_PERFMON 38, CAP_BPF 39 (include/uapi/linux/capability.h).
[ "$granted" = 000000c000001000 ] || fail "capabilities $granted"
[ "$(cat /proc/sys/net/ipv4/conf/lan0/proxy_arp)" = 1 ] || fail "no setting of the interface was changed"
ip rule | grep -q fwmark || fail "no rule leads steered packets here"

say "crash, start, stop"
kill -9 "$daemon"; wait "$daemon" || true
start
grep -q 'found attached' "$root/tmp/redirectd.log" || fail "nothing was taken over"
kill -TERM "$daemon"; wait "$daemon" || fail "the stop failed"
wait_for "STOPPING=1" grep -q "^STOPPING=1" "$root/tmp/notified"
ls "$root"/run/redirectd/bpf/pins/links_*/*_egress >/dev/null || fail "the programs did not stay"

say "remove and purge"
inside dpkg --remove redirectd
[ ! -e "$root/run/redirectd/bpf/pins" ] || fail "pins are left"
[ -e "$root/etc/redirect/redirectd.toml" ] || fail "the configuration went before the purge"
[ "$(network)" = "$network_before" ] || { network; fail "rules, routes or links are left"; }
[ "$(cat /proc/sys/net/ipv4/conf/lan0/proxy_arp)" = 0 ] || fail "a setting of the interface is left"
inside dpkg --purge redirectd
files > "$root/tmp/after"
diff "$root/tmp/before" "$root/tmp/after" || fail "files are left"
[ "$(cat "$root/etc/passwd" "$root/etc/group")" = "$accounts" ] || fail "accounts are left"
say "installed, run, removed: nothing is left"
