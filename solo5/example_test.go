package solo5_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

// A program that starts an image as a child, and does with the process what it
// has to do before the guest runs.
func Example() {
	run := func(image *os.File) error {
		tender, err := solo5.PrepareSPT(solo5.Guest{Image: image, Memory: 16, Args: []string{"hello", "3"}, Name: "web.web.42"})
		if err != nil {
			return err // one sentence: on the image, the memory or a device
		}
		defer tender.Close()
		cmd, gate, err := tender.GatedCommand()
		if err != nil {
			return err
		}
		defer gate.Close() // if this comes first the guest never runs
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			return err
		}
		// Here cmd.Process.Pid goes into its cgroup and onto its CPUs.
		if err := gate.Open(); err != nil {
			return err
		}
		return cmd.Wait()
	}

	image, remove := exampleImage(0)
	defer remove()
	err := run(image)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		fmt.Println(exit)
	}
	// Output:
	// hello
	// exit status 3
}

// A program that is the tender of its virtual machines itself: all it has to do
// is to call HVTMain before anything else in main.
func ExamplePrepareHVT() {
	solo5.HVTMain()

	run := func(image, disk *os.File) error {
		self, err := os.Open("/proc/self/exe") // also right when the file was replaced since
		if err != nil {
			return err
		}
		defer self.Close()
		tender, err := solo5.PrepareHVT(solo5.Guest{
			Image: image, Memory: 32, Blocks: []solo5.Block{{Name: "storage", File: disk, SectorSize: 4096}},
		}, self)
		if err != nil {
			return err
		}
		defer tender.Close()
		cmd, err := tender.Command()
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // what the unikernel did wrong is a line on the latter
		return cmd.Run()
	}
	_ = run
}

func ExampleRead() {
	image, remove := exampleImage(1)
	defer remove()
	info, err := image.Stat()
	if err != nil {
		fmt.Println(err)
		return
	}
	img, err := solo5.Read(image, info.Size())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(img.Target, "version", img.ABI, "needs", img.MinMemory(), "MB")
	for _, d := range img.Devices {
		fmt.Println(d.Type, d.Name)
	}
	fmt.Println(img.CheckMemory(1))
	fmt.Println(img.CheckDevices(nil, nil))
	// Output:
	// spt version 2 needs 2 MB
	// network net0
	// memory of 1 MB is too small: the image needs at least 2 MB
	// the image declares the network device "net0", and it is not attached
}

// exampleImage compiles an image with so many network devices.
func exampleImage(nets int) (image *os.File, remove func()) {
	dir, err := os.MkdirTemp("", "solo5")
	if err != nil {
		panic(err)
	}
	path, err := solo5test.Compile(dir, nets)
	if err != nil {
		panic(err)
	}
	if image, err = os.Open(path); err != nil {
		panic(err)
	}
	return image, func() {
		image.Close()
		os.RemoveAll(dir)
	}
}
