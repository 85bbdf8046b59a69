# shellcheck shell=dash
# The last step of a first root that runs no init: the agent alone runs the commands of the host, in
# the root at /root. The host ends the guest.
for directory in dev proc sys; do
    [ -d /root/$directory ] || fail "the root file system has no /$directory"
    mount --move /$directory /root/$directory
done
begin_channel
while true; do
    sleep 3600
done
