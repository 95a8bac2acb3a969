#!/bin/sh
# In the guest: kube-proxy's virtual servers, one with an open connection; then our agent starts, and the API server is the lab's.
set -e
. /guest/node.sh
VIP=10.96.200.10 UNUSED=10.96.0.99
trap '[ $? = 0 ] || { echo "RESULT failed: the script ended early"; cat /agent.log; }' EXIT

uplink() {
  modprobe virtio_pci
  modprobe virtio_net
  $ip address add 10.0.2.15/24 dev eth0
  $ip link set eth0 up
  $ip route add default via 10.0.2.2
}

# As kube-proxy makes them, with a server in the pod that says what it hears.
kube_proxy() {
  modprobe dummy numdummies=0
  $ip link add kube-ipvs0 type dummy
  modprobe ip_vs
  echo 1 >/proc/sys/net/ipv4/vs/conntrack
  for address in $VIP $UNUSED; do
    $ip address add $address/32 dev kube-ipvs0
    ipvsadm --add-service --tcp-service $address:80 --scheduler rr
    ipvsadm --add-server --tcp-service $address:80 --real-server $POD:8081 --masquerading
  done
  kube_proxy_rules
  $ip netns exec pod busybox nc -ll -p 8081 -e busybox cat &
  wait_until listens 8081
}

# A condition that does not come ends the script.
wait_until() {
  for _ in $(seq 1200); do
    if "$@" 2>/dev/null; then return; fi
    usleep 50000
  done
  echo "RESULT failed: $*"
  return 1
}

# Its own line for each server, with the connections through its pod.
connections() {
  ipvsadm -Ln | awk -v server="$1:80" '$1 == "TCP" { now = $2 } $1 == "->" && now == server { print $5 + $6 }'
}

# listens PORT: a server of the pod's, by `netstat` of its namespace.
listens() { $ip netns exec pod busybox netstat -ltn | grep -q ":$1 "; }
heard() { [ "$(tail -n 1 /from)" = "$1" ]; }
say() { echo "$1" >&3; wait_until heard "$1" && tail -n 1 /from; }
new() { echo "$1" | $ip netns exec client busybox nc -w 5 $VIP 80 | head -n 1; }
serves() { nft list map ip portolan services | grep -q "$VIP . tcp . 80"; }
is_gone() { [ -z "$(connections "$1")" ]; }
none_left() { ! ipvsadm -Ln | grep -q TCP && [ ! -e /sys/class/net/kube-ipvs0 ]; }

network
uplink
kube_proxy
hold $VIP
first=$(say one)
echo "RESULT before: through $VIP:80 $(connections $VIP), unused $UNUSED:80 $(connections $UNUSED)"
echo "RESULT open: $first"

portolan agent --node-name=guest --kubeconfig=/guest/kubeconfig --config=/guest/config.yaml >/agent.log 2>&1 &
wait_until serves
wait_until is_gone $UNUSED
echo "RESULT taken over: through $VIP:80 $(connections $VIP)"
echo "RESULT the open connection: $(say two)"
echo "RESULT a new connection: $(new three)"
echo "RESULT through IPVS: $(connections $VIP)"
echo "RESULT interface: $(ls /sys/class/net | grep kube)"

# IPVS forgets a connection that is idle, and begins anew with each packet.
ipvsadm --set 5 0 0
say more >/dev/null
wait_until none_left
echo "RESULT afterwards: servers $(ipvsadm -Ln | grep -c TCP || true), interfaces $(ls /sys/class/net | grep -c kube || true)"
echo "RESULT a new connection: $(new four)"
