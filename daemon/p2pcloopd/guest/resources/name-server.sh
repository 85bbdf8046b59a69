# shellcheck shell=dash
# A step of the first root: a function that tells programs of the image which name server there is.
# shellcheck disable=SC2154  # init.sh sets `mode`, find_real sets `real` and so on

# give_name_server: programs of the image find the wire's name server, unless the image names one.
give_name_server() {
    if ! find_real /etc/resolv.conf; then
        missing=$real/$name${rest:+/$rest}
        case $missing in
            /run/*)
                # A link to the file that a resolver of the image writes once it runs.
                if mount_run; then
                    mkdir -p "/root${missing%/*}"
                    echo "nameserver $NAMESERVER" >"/root$missing"
                fi
                return
                ;;
        esac
        # There may be no folder for it, or links in a circle, and nothing that can be written.
        [ -z "$rest" ] && [ "$links" -le 40 ] && [ "$mode" = rw ] || return
        true >"/root$missing"
        real=$missing
    fi
    [ -f "/root$real" ] || return
    ! grep -q '^[[:blank:]]*nameserver' "/root$real" || return
    {
        cat "/root$real"
        echo "nameserver $NAMESERVER"
    } >/resolv.conf
    mount --bind /resolv.conf "/root$real"
}
