#!/bin/sh
# In the guest: a node as kube-proxy's IPVS mode leaves it, with things of others beside; then ours are loaded and kube-proxy's go.
# Each fact is one RESULT line.
set -e
. /guest/node.sh
CLUSTER_IP=10.96.0.10 BALANCER=192.0.2.10
trap '[ $? = 0 ] || echo "RESULT failed: the script ended early"' EXIT

serve() {
  mkdir -p /www
  echo answer >/www/index.html
  $ip netns exec pod busybox httpd -p 8080 -h /www
}

# What kube-proxy 1.36 makes of one Service (and of cluster DNS, for UDP), in its order.
kube_proxy() {
  modprobe dummy numdummies=0
  $ip link add kube-ipvs0 type dummy
  for address in $CLUSTER_IP/32 10.96.0.53/32 $BALANCER/32 fd96::10/128; do
    $ip address add $address dev kube-ipvs0
  done
  modprobe ip_vs
  echo 1 >/proc/sys/net/ipv4/vs/conntrack
  for tcp in $CLUSTER_IP:80 $BALANCER:80 $NODE:30080; do
    ipvsadm --add-service --tcp-service $tcp --scheduler rr
    ipvsadm --add-server --tcp-service $tcp --real-server $POD:8080 --masquerading
  done
  for udp in 10.96.0.53:53 $NODE:30053; do
    ipvsadm --add-service --udp-service $udp --scheduler rr
    ipvsadm --add-server --udp-service $udp --real-server $POD:5353 --masquerading
  done
  ipvsadm --add-service --tcp-service '[fd96::10]:80' --scheduler rr
  ipvsadm --add-server --tcp-service '[fd96::10]:80' --real-server '[fd00:10:244:1::5]:8080' --masquerading
  kube_proxy_rules
}

# A keepalived's balancer on the node's own address, and a firewall's set that a rule of its own names.
others() {
  ipvsadm --add-service --tcp-service $NODE:8443 --scheduler wlc
  ipvsadm --add-server --tcp-service $NODE:8443 --real-server $POD:8080 --masquerading
  ipset create blocked hash:ip
  ipset add blocked 198.51.100.7
  iptables-nft-restore --noflush <<END
*filter
-A FORWARD -m set --match-set blocked src -j DROP
COMMIT
END
}

# ask ADDRESS PORT: by nc, for a static wget looks up services' names, and that wants the libraries it was built with.
ask() {
  printf 'GET / HTTP/1.0\r\n\r\n' | $ip netns exec client busybox nc -w 3 "$1" "$2" 2>/dev/null | tail -n 1
}

asks() {
  for way in "$CLUSTER_IP 80" "$BALANCER 80" "$NODE 30080" "$NODE 8443"; do
    echo "RESULT $1: $way: $(ask $way)"
  done
}

words() { echo "RESULT $1:$(sort -u | while read -r word; do printf ' %s' "$word"; done)"; }

state() {
  grep -E '^(TCP|UDP|SCTP|FWM) ' /proc/net/ip_vs | cut -d ' ' -f 1,3 | tr ' ' '/' | words "$1: virtual servers"
  ls /sys/class/net | words "$1: interfaces"
  ipset list -n | words "$1: sets"
  { iptables-nft-save; ip6tables-nft-save; } | grep -oE 'KUBE-[A-Z0-9-]+' | words "$1: named in rules"
}

# Requests one after another, from before the first of what must not disturb them to after the last.
keep_asking() {
  while [ ! -e /stop ]; do
    if [ "$(ask $CLUSTER_IP 80)" = answer ]; then echo >>/answered; else echo >>/lost; fi
  done
  touch /stopped
}

count() { if [ -e "$1" ]; then wc -l <"$1"; else echo 0; fi; }

# One more request was asked and answered, or lost, than now.
one_more() {
  before=$(($(count /answered) + $(count /lost)))
  while [ $(($(count /answered) + $(count /lost))) -le $((before + 1)) ]; do usleep 20000; done
}

network
serve
kube_proxy
others
state before
asks ipvs
hold $CLUSTER_IP

nft -f /guest/portolan.nft
keep_asking &
one_more
status=0
portolan cleanup --kube-proxy >/said 2>&1 || status=$?
cat /said
echo "RESULT cleanup: $status, $(grep -o 'connections ended' /said)"
printf 'GET / HTTP/1.0\r\n\r\n' >&3
one_more
echo "RESULT held: $(cat /from)"
touch /stop
while [ ! -e /stopped ]; do usleep 20000; done
echo "RESULT lost: $(count /lost)"

state after
asks portolan
status=0
portolan cleanup --kube-proxy || status=$?
echo "RESULT again: $status"
