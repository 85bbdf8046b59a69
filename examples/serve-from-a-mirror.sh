#!/bin/bash
# An image as plain files: one node writes them, any web server serves them, another node boots from
# that server alone.
#     examples/serve-from-a-mirror.sh IMAGE   (tools/build-image makes one, and prints its path)
# The guest's console is this terminal; `poweroff` in the guest ends it. Nothing is left behind.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 IMAGE" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

work=$(mktemp -d)
server=''
clean_up() {
    for node in publisher reader; do
        p2pcloop stop --all --home "$work/$node" >/dev/null || true # if this script was killed
        p2pcloop daemon stop --home "$work/$node"
    done
    [ -z "$server" ] || { kill "$server" && wait "$server"; } || true
    rm -rf "$work"
}
trap clean_up EXIT

# The server: busybox has one. Any will do that answers range requests.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port/
mkdir "$work/www"
busybox httpd -f -p "127.0.0.1:$port" -h "$work/www" &
server=$!

# The publisher writes the files, and is not needed any more.
seeded=$(p2pcloop seed "$image" --name example --home "$work/publisher" --json)
name=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["name"])' <<<"$seeded")
p2pcloop mirror "$name" "$work/www" --url "$url" --home "$work/publisher"
p2pcloop daemon stop --home "$work/publisher"
(cd "$work/www" && find . -type f -printf '  %P, %s bytes\n' | sort)

# The name at the end of the URL holds the publisher's key: the server cannot put another image there.
echo "booting $url$name"
p2pcloop boot "$url$name" --mem 256M --home "$work/reader" --report "$work/report.json"

python3 - "$work/report.json" <<'END'
import json, sys
told = json.load(open(sys.argv[1]))
print(f"{told['bytes_received']:,} bytes came, of an image of {told['image_stored']:,}:")
for source, count in told["sources"].items():
    print(f"  {count:,} from {source}")
END
