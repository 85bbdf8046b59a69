# shellcheck shell=dash
# A step of the first root: the way to the guest's X server. The card gets its address, and
# /dev/.p2pcloop what X clients need: /dev is the one directory that every root has and that is no
# part of the image.
place=/dev/.p2pcloop
ip address add "$DISPLAY_GUEST" dev "$DISPLAY_CARD"
ip link set "$DISPLAY_CARD" up
mkdir -p $place
cp /Xauthority /display $place
chmod 600 $place/Xauthority
chmod 644 $place/display
