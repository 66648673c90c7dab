#!/bin/sh
# What becomes of the package under Debian's own systemd: `cargo xtask test package` boots a virtual machine that runs this as package-test.service.
# Ends with the line that the task waits for, or with the journal.
set -eu

say() { echo "==> $*"; }
fail() { echo "FAILED: $*"; exit 1; }
explain() {
    echo "FAILED: what systemd says of it:"
    systemctl --no-pager --lines 0 status redirectd.service run-redirectd-bpf.mount || true
    journalctl --no-pager --lines 60
}
trap '[ $? = 0 ] || explain' EXIT
wait_for() {
    what=$1; shift
    for _ in $(seq 1200); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.5; done
    fail "no $what"
}
property() { systemctl show --property "$1" --value redirectd.service; }
state() { [ "$(property ActiveState)" = "$1" ]; }
# Another process than the one before, which has told systemd that it is ready.
restarted() { [ "$(property MainPID)" != "$1" ] && state active; }
fact() { sed -n "s/^$1:[ \t]*//p" "/proc/$(property MainPID)/status"; }
log_since_start() { journalctl --no-pager --output cat _SYSTEMD_INVOCATION_ID="$(property InvocationID)"; }
attached() { redirect-ctl status --no-headers | grep -q "^interface lan0 *attached, "; }
# A client of the subscribers' side connects to a server far away; who answers?
greeting() {
    timeout 60 ip netns exec client bash -c 'exec 3<>/dev/tcp/203.0.113.9/25; IFS= read -r -t 30 line <&3; echo "$line"'
}
greeted() { greeting | grep -q "^220 "; }
# What a package is to leave nothing of; its own records and backup copies of dpkg and adduser aside.
files() {
    find / -xdev \( -path /tmp -o -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/cache \) \
        -prune -o -print | grep -v -e '^/etc/.*-$' | sort
}
network() { ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o link show lan0; }
apt() { apt-get --quiet=2 --yes -o Dpkg::Use-Pty=0 "$@" </dev/null; }
export DEBIAN_FRONTEND=noninteractive

say "systemd $(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p'), Linux $(uname -r)"
for module in /modules/*; do insmod "$module"; done
ip netns add client
ip link add lan0 type veth peer name eth0 netns client
ip link set lan0 up
ip address add 10.20.0.1/16 dev lan0
ip -n client link set eth0 up
ip -n client address add 10.20.3.7/16 dev eth0
ip -n client route add default via 10.20.0.1
# Until addresses of IPv6 are no longer tentative, which shows in the routes.
sleep 3
files > /tmp/before
accounts=$(cat /etc/passwd /etc/group)
network_before=$(network)

say "install"
apt install /redirectd.deb
[ -z "$(dpkg --verify redirectd)" ] || fail "files differ from the package's"
redirectd --check
state active || fail "the installation does not start it"
systemctl --quiet is-enabled redirectd.service || fail "it does not start with the machine"
systemctl --quiet is-active run-redirectd-bpf.mount || fail "the pins have no file system"
[ "$(property Type) $(property NotifyAccess) $(property NRestarts)" = "notify main 0" ] || fail "its start was none"
redirect-ctl status
# Of a hundred; above, the unit has lost some of its hardening.
systemd-analyze --no-pager --threshold=25 security redirectd.service | tail -n 1

say "an interface and a relay"
cat >> /etc/redirect/redirectd.toml <<TOML
[relay]
listen = ["10.20.0.1:2525"]
[[interface]]
name = "lan0"
role = "subscriber"
foreign_sources = true
TOML
before=$(property MainPID)
systemctl restart redirectd.service
restarted "$before" || fail "systemctl restart came back before it was ready"
wait_for "attachment" attached
[ "$(fact Uid | cut -f 1-3)" = "$(printf '%s\t%s\t%s' $(id -u redirectd) $(id -u redirectd) $(id -u redirectd))" ] \
    || fail "it runs as $(fact Uid)"
[ "$(id -u redirectd)" != 0 ] || fail "its user is root"
# CAP_NET_ADMIN 12, CAP_PERFMON 38, CAP_BPF 39 (include/uapi/linux/capability.h).
for set in CapInh CapPrm CapEff CapBnd CapAmb; do
    [ "$(fact $set)" = 000000c000001000 ] || fail "$set is $(fact $set)"
done
[ "$(fact NoNewPrivs) $(fact Seccomp)" = "1 2" ] || fail "it is not confined"
[ "$(cat /proc/sys/net/ipv4/conf/lan0/proxy_arp)" = 1 ] || fail "no setting of the interface was changed"
ip rule | grep -q fwmark || fail "no rule leads steered packets here"
redirect-ctl subscriber set 10.20.0.0/16 --class configured
wait_for "greeting of the relay" greeted

say "reload, watchdog"
systemctl reload redirectd.service
fed=$(property WatchdogTimestampMonotonic)
fed_again() { [ "$(property WatchdogTimestampMonotonic)" != "$fed" ]; }
wait_for "food for the watchdog" fed_again
before=$(property MainPID)
kill -STOP "$before"
wait_for "restart of a daemon that hangs" restarted "$before"
journalctl --no-pager --unit redirectd.service | grep -q "Failed with result 'watchdog'" || fail "something else ended it"

say "crash"
before=$(property MainPID)
kill -KILL "$before"
wait_for "restart after a crash" restarted "$before"
log_since_start | grep -q "found attached" || fail "nothing was taken over"
wait_for "greeting after a crash" greeted

say "upgrade"
before=$(property MainPID)
apt install --reinstall /redirectd.deb
restarted "$before" || fail "the upgrade did not start the programs that it brought"
log_since_start | grep -q "found attached" || fail "nothing was taken over"
wait_for "greeting after an upgrade" greeted

say "stop, start"
systemctl stop redirectd.service
[ "$(property ActiveState) $(property Result)" = "inactive success" ] || fail "the stop failed"
ls /run/redirectd/bpf/pins/links_*/*_egress >/dev/null || fail "the programs did not stay"
systemctl start redirectd.service
state active || fail "systemctl start came back before it was ready"
wait_for "greeting after a start" greeted

say "remove"
apt remove redirectd
[ ! -e /run/redirect ] || fail "/run/redirect is left"
[ ! -e /run/redirectd ] || fail "/run/redirectd is left"
[ -e /etc/redirect/redirectd.toml ] || fail "the configuration went before the purge"
[ "$(network)" = "$network_before" ] || { network; fail "rules, routes or links are left"; }
[ "$(cat /proc/sys/net/ipv4/conf/lan0/proxy_arp)" = 0 ] || fail "a setting of the interface is left"

say "purge"
apt purge redirectd
files > /tmp/after
diff /tmp/before /tmp/after || fail "files are left"
[ -z "$(systemctl list-units --all --plain --no-legend '*redirectd*')" ] || { systemctl list-units --all '*redirectd*'; fail "units are left"; }
[ "$(cat /etc/passwd /etc/group)" = "$accounts" ] || fail "accounts are left"
say "installed, run, removed: nothing is left"
