#!/bin/bash
# Installs the Debian packages that the lab needs and that are missing. No daemon of theirs is started or left enabled: the lab
# runs its own, in namespaces.
set -euo pipefail

packages=(etcd-server bird2 frr nftables conntrack iproute2 iptables tcpdump curl kmod procps ca-certificates make gcc libc6-dev
  qemu-system-x86 busybox-static ipvsadm ipset)
daemons=(etcd bird frr)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "missing packages: ${missing[*]}"
if [ "$(id -u)" != 0 ]; then
  echo "installing them needs root: run this as root, or apt-get install ${missing[*]}" >&2
  exit 1
fi

# Says no to every start of a daemon while packages are installed, unless somebody else decides that here already.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap 'rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
fi

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120)
for attempt in 1 2 3 4; do
  if "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null; then
    break
  fi
  [ $attempt = 4 ] && { echo "apt-get failed $attempt times" >&2; exit 1; }
  echo "apt-get failed: attempt $((attempt + 1)) in $((attempt * 10)) s"
  sleep $((attempt * 10))
done

if [ -d /run/systemd/system ]; then
  for daemon in "${daemons[@]}"; do
    # Only what this script brought: a router that was here before is somebody's.
    case " ${missing[*]} " in
      *" $daemon "* | *" ${daemon}2 "* | *" $daemon-server "*) systemctl disable --quiet "$daemon" || true ;;
    esac
  done
fi
