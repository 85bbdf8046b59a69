# Prints the drivers of devices, of which each line of the input is a modalias (kernel documentation,
# driver-api/usb/writing_usb_driver and PCI.rst). /modules/drivers has lines KEY DRIVER: a device is
# known by its vendor and number, by its vendor, or by its class.
BEGIN {
    while ((getline line < "/modules/drivers") > 0) {
        split(line, words, " ")
        drivers[words[1]] = drivers[words[1]] " " words[2]
    }
}
{
    keys = substr($0, 1, 22) " " substr($0, 1, 13) " " substr($0, 1, 16) " " substr($0, 1, 14) " " $0
    if (match($0, /bc[0-9A-F][0-9A-F]sc[0-9A-F][0-9A-F]i[0-9A-F][0-9A-F]/))
        keys = keys " " substr($0, RSTART, RLENGTH)
    count = split(keys, each, " ")
    for (number = 1; number <= count; number++) {
        found = split(drivers[each[number]], names, " ")
        for (place = 1; place <= found; place++)
            if (!(names[place] in told)) {
                told[names[place]]
                print names[place]
            }
    }
}
