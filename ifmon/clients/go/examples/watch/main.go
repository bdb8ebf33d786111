// Prints what happens to interfaces.
//
//	go run ./examples/watch wg0 eth1
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"ifmon"
)

func main() {
	path := flag.String("agent", ifmon.DefaultPath, "socket of the agent")
	flag.Parse()
	var targets []ifmon.Target
	for _, name := range flag.Args() {
		targets = append(targets, ifmon.Target{Name: name})
	}
	if err := watch(ifmon.Agent{Path: *path}, targets); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func watch(agent ifmon.Agent, targets []ifmon.Target) error {
	watcher := agent.Watch(context.Background(), targets...)
	defer watcher.Close()
	lines := json.NewEncoder(os.Stdout)
	for {
		event, err := watcher.Next()
		if err != nil {
			return err
		}
		if err := lines.Encode(event); err != nil {
			return err
		}
	}
}
