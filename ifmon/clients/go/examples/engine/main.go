// An engine that runs on top of an interface, and begins anew when that is not the one any more
// that it was set up with.
//
//	go run ./examples/engine wg0
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ifmon"
)

func main() {
	path := flag.String("agent", ifmon.DefaultPath, "socket of the agent")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, ifmon.Agent{Path: *path}, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, agent ifmon.Agent, name string) error {
	for {
		device, err := present(ctx, agent, name)
		if err != nil {
			return ended(ctx, err)
		}
		// Here the engine sets up what it does with the device.
		fmt.Printf("running on %s, index %d\n", name, device.Index)
		restart, err := agent.WaitForChange(ctx, name, device.Index)
		var gone *ifmon.GoneError
		switch {
		case !restart:
			return ended(ctx, err)
		case err == nil:
			fmt.Println("restarting: another device has the name")
		case errors.As(err, &gone):
			fmt.Println("restarting:", err)
		default:
			return err
		}
	}
}

// present waits until the interface exists.
func present(ctx context.Context, agent ifmon.Agent, name string) (*net.Interface, error) {
	watcher := agent.Watch(ctx, ifmon.Target{Name: name})
	defer watcher.Close()
	for {
		event, err := watcher.Next()
		if err != nil {
			return nil, err
		}
		if event.Index == 0 {
			continue
		}
		if device, err := net.InterfaceByName(name); err == nil {
			return device, nil
		}
	}
}

// ended makes no error of an end that was asked for.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		fmt.Println("stopped at", time.Now().Format(time.RFC3339))
		return nil
	}
	return err
}
