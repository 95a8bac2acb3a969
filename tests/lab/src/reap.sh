# Removes every trace of one lab. $1 is the prefix of its namespaces, $2 its folder.
#
# It starts with the end of its input: the lab holds the other end of that pipe, so that its death in any form, kill -9
# included, starts the clean-up. Everything a lab runs lives in the lab's own namespaces, which is how it is found.
cat >/dev/null
PATH=$PATH:/usr/sbin:/sbin
namespaces() { ls /run/netns 2>/dev/null | grep "^$1-"; }
for pass in 1 2 3 4 5; do
  pids=$(for ns in $(namespaces "$1"); do ip netns pids "$ns"; done)
  [ -z "$pids" ] && break
  kill -9 $pids 2>/dev/null
done
for ns in $(namespaces "$1"); do ip netns del "$ns"; done
# A failed test leaves its logs.
if [ -e "$2/keep" ]; then
  find "$2" -mindepth 1 -maxdepth 1 ! -name logs ! -name keep -exec rm -rf {} +
else
  rm -rf "$2"
fi
