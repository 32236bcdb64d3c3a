#!/bin/sh
# What pip cannot install, where apt and the rights are there; else says what to do. Never fails.
#   system_libraries.sh         libusb, which Open3D (nerfstudio's exporter) needs; training and rendering work without it
#   system_libraries.sh tests   Chromium, for the tests of the viewer; without it they are skipped
set -u

install() {
    if [ "$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root=sudo; else return 1; fi
    command -v apt-get >/dev/null 2>&1 || return 1
    $as_root apt-get update -qq >/dev/null 2>&1
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

if [ "${1:-}" = tests ]; then
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" >/dev/null 2>&1 && exit 0
    done
    echo "installing chromium (the tests of the viewer drive it)"
    install chromium && command -v chromium >/dev/null 2>&1 && exit 0
    echo "note: no Chromium, and it could not be installed: the tests of the viewer are skipped (Debian: apt-get install chromium)" >&2
    exit 0
fi

if ldconfig -p 2>/dev/null | grep -q 'libusb-1.0\.so\.0'; then exit 0; fi
echo "installing libusb-1.0-0 (Open3D needs it for ns-export)"
install libusb-1.0-0 libegl1 libgl1 libgomp1 && exit 0
echo "note: libusb-1.0 is missing and could not be installed: ns-export needs it (Debian/Ubuntu: apt-get install libusb-1.0-0)" >&2
exit 0
