# A node with a pod and a client on another wire. The shell's own applets go before programs, so `ip` is called by its path.
ip=/usr/bin/ip
NODE=172.30.0.11 POD=10.244.1.5

# attach NAMESPACE ADDRESS GATEWAY: a namespace whose way out is this node.
attach() {
  $ip netns add "$1"
  $ip link add "$1" type veth peer name eth0 netns "$1"
  $ip address add "$3/24" dev "$1"
  $ip link set "$1" up
  $ip -n "$1" link set lo up
  $ip -n "$1" address add "$2/24" dev eth0
  $ip -n "$1" link set eth0 up
  $ip -n "$1" route add default via "$3"
}

network() {
  echo 1 >/proc/sys/net/ipv4/ip_forward
  attach pod $POD 10.244.1.1
  attach client 172.30.0.100 $NODE
}

# Its sets and iptables rules. They track connections, IPVS's too.
kube_proxy_rules() {
  ipset restore </guest/kube_proxy.sets
  iptables-nft-restore --noflush </guest/kube_proxy.rules
  ip6tables-nft-restore --noflush </guest/kube_proxy.rules6
}

# hold ADDRESS: a connection of the client's to its port 80 that stays open: what is written to 3 goes out, answers go to /from.
hold() {
  mkfifo /to
  $ip netns exec client busybox nc "$1" 80 </to >/from &
  exec 3>/to
}
