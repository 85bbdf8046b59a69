# shellcheck shell=dash
# The last step of a first root: hands over to the init of the root at /root. Its functions are in
# programs.sh and logins.sh.
# shellcheck disable=SC2154  # choose_init sets `init`, arrange_login sets `kind`
choose_init
check_program "$init" "$init"
arrange_login
echo "$START_MARK$init${kind:+ ($kind)}"
# A shell, for instance, does not heed Ctrl-Alt-Del.
[ -n "$kind" ] || echo 1 >/proc/sys/kernel/ctrl-alt-del

for directory in dev proc sys; do
    [ -d /root/$directory ] && mount --move /$directory /root/$directory
done
begin_channel
# What the kernel does not know it hands to init, although UML has used it.
unset mem hostfs uml_dir umid
[ "$1" != noreboot ] || shift
exec switch_root /root "$init" "$@"
