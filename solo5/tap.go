package solo5

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenTap attaches to a tap that exists and is up, in the network namespace of
// the calling thread, and returns it with its MTU. It never makes one.
func OpenTap(name string) (*os.File, int, error) {
	mtu, err := linkMTU(name)
	if err != nil {
		return nil, 0, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("attach to tap %q: open /dev/net/tun: %w", name, err)
	}
	tap := os.NewFile(uintptr(fd), name)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("attach to tap %q: %w", name, err), tap.Close())
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("attach to tap %q: %w", name, err), tap.Close())
	}
	return tap, mtu, nil
}

// TapMTU returns the MTU of the interface behind an open tap.
func TapMTU(tap *os.File) (int, error) {
	request, err := unix.NewIfreq("")
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNGETIFF, request); err != nil {
		return 0, fmt.Errorf("%s is no tap: %w", tap.Name(), err)
	}
	return linkMTU(request.Name())
}

// linkMTU returns the MTU of an interface that is up.
func linkMTU(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil || name == "" || strings.ContainsAny(name, "%/") {
		return 0, mismatch("%q is no name of an interface", name)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look for interface %q: %w", name, err)
	}
	mtu, err := askMTU(fd, request)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return 0, fmt.Errorf("look for interface %q: %w", name, err)
	}
	return mtu, nil
}

func askMTU(fd int, request *unix.Ifreq) (int, error) {
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return 0, err
	}
	if request.Uint16()&unix.IFF_UP == 0 {
		return 0, errors.New("it is down")
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, request); err != nil {
		return 0, err
	}
	return int(request.Uint32()), nil
}
