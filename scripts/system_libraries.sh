#!/bin/sh
# Open3D (nerfstudio's exporter) needs libusb, which a bare machine lacks. Installs it where apt and the rights are there,
# else says what to do; training and rendering work without it.
set -u
if ldconfig -p 2>/dev/null | grep -q 'libusb-1.0\.so\.0'; then exit 0; fi
if [ "$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root=sudo; else as_root=none; fi
if [ "$as_root" != none ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing libusb-1.0-0 (Open3D needs it for ns-export)"
    $as_root apt-get update -qq >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends \
        libusb-1.0-0 libegl1 libgl1 libgomp1 >/dev/null 2>&1 && exit 0
fi
echo "note: libusb-1.0 is missing and could not be installed: ns-export needs it (Debian/Ubuntu: apt-get install libusb-1.0-0)" >&2
exit 0
