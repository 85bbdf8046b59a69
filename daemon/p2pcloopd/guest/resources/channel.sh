# shellcheck shell=dash
# A step of the first root: starts the agent, which runs the commands of the host (agent.sh), in the
# root at /root. Without the module it does nothing, and the guest boots as it would.

# begin_channel: called when /dev, /proc and /sys are those of /root, before its init starts.
begin_channel() {
    [ -e /modules/virtio_console.order ] && has_console_device || return 0
    [ -e /root/proc/self ] && [ -c /root/dev/null ] || return 0
    module=/modules/virtio_console.ko
    [ -e $module ] || module=/root/dev/null # it is built in
    # Twice setsid: the second one is a session leader, and so forks. A process that the shell starts
    # with `&` would ignore SIGINT, and so would all commands.
    # shellcheck disable=SC2094  # nothing is written there
    chroot /root setsid setsid env -i HOME=/root USER=root LOGNAME=root SHELL=/bin/sh \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        sh /proc/self/fd/9 wait "$BELL" 9</lib/agent.sh 8<$module 7</lib/become.sh \
        </root/dev/null >/root/dev/null 2>&1
}

# has_console_device: whether the host serves a virtio console (virtio 1.2, section 5.3: device 3).
has_console_device() {
    set +f
    for device in /root/sys/bus/virtio/devices/virtio*; do
        read -r kind <"$device/device" && [ "$kind" = 0x0003 ] && return
    done
    return 1
} 2>/dev/null
