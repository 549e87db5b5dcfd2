package albatross_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"fulmar/albatross"
)

// A client of the daemon in one directory, and a daemon that runs nothing but remembers names.
func Example() {
	dir, stop := startDaemon()
	defer stop()

	ctx := context.Background()
	client := &albatross.Client{Dir: dir}
	name, err := albatross.ParseName("web:hello")
	if err != nil {
		fmt.Println(err)
		return
	}
	cfg := albatross.Config{
		Image: []byte("an ELF image"),
		Args: albatross.Args{
			Memory:    32,
			CPUIDs:    []int{0},
			Bridges:   []albatross.Bridge{{Netif: "service", Bridge: "br0"}},
			Arguments: []string{"--ipv4=10.0.0.2/24"},
		},
	}
	fmt.Println(client.Create(ctx, name, cfg))
	err = client.Create(ctx, name, cfg)
	fmt.Println(errors.Is(err, albatross.ErrExists), err)

	running, err := client.Info(ctx, name.Path().Name()) // all of web
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range running {
		fmt.Println(r.Name, r.Memory, "MB")
	}
	// Output:
	// <nil>
	// true albatross: create web:hello: Unikernel with same name is already running
	// web:hello 32 MB
}

// startDaemon serves what the example asks for.
func startDaemon() (dir string, stop func()) {
	dir, err := os.MkdirTemp("", "albatross")
	if err != nil {
		panic(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "util"), 0o700); err != nil {
		panic(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, albatross.VMMDSocket))
	if err != nil {
		panic(err)
	}
	running := map[albatross.Name]albatross.Config{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			header, command, err := albatross.ReadRequest(conn, 64<<20)
			if err == nil {
				err = albatross.WriteReply(conn, header, answer(running, header.Name, command))
			}
			if err = errors.Join(err, conn.Close()); err != nil {
				fmt.Println(err)
			}
		}
	})
	return dir, func() {
		l.Close()
		wg.Wait()
		os.RemoveAll(dir)
	}
}

func answer(running map[albatross.Name]albatross.Config, name albatross.Name, m albatross.Command) albatross.Payload {
	switch m := m.(type) {
	case albatross.UnikernelCreate:
		if _, ok := running[name]; ok && !m.Force {
			return albatross.Failure("Unikernel with same name is already running")
		}
		running[name] = m.Config
		return albatross.Text("created unikernel")
	case albatross.UnikernelInfo:
		reply := albatross.Unikernels{Generation: m.Generation}
		for n, cfg := range running {
			relative, ok := name.Path().Relative(n)
			if !ok {
				continue
			}
			info := albatross.Info{Memory: cfg.Memory, CPUIDs: cfg.CPUIDs}
			reply.List = append(reply.List, albatross.Running{Name: relative, Info: info})
		}
		return reply
	}
	return albatross.Failure("unknown command")
}

func ExampleMAC() {
	name, err := albatross.ParseName("foo:bar")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(albatross.MAC(name, "service"))
	// Output: 00:80:41:0c:85:fb
}

func ExampleUnmarshal() {
	name, err := albatross.ParseName("hello")
	if err != nil {
		fmt.Println(err)
		return
	}
	der, err := albatross.Marshal(albatross.Wire{
		Header:  albatross.Header{Sequence: 42, Name: name},
		Payload: albatross.UnikernelGet{Level: 9},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%x\n", der)
	message, err := albatross.Unmarshal(der)
	fmt.Printf("%v %T %v\n", message.Name, message.Payload, err)
	_, err = albatross.Unmarshal(der[:len(der)-1])
	fmt.Println(err)
	// Output:
	// 302030150201050408000000000000002a0c063a68656c6c6fa007a305ab03020109
	// :hello albatross.UnikernelGet <nil>
	// albatross: malformed message: message at offset 0: no DER element: truncated, or its length has a form that DER does not allow
}
