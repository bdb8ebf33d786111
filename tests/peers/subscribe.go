// The design that ifmon replaces, as small as it can be written: takes and decodes every link
// message, to see whether it is about one interface. A line means: ready, or something happened.
package main

import (
	"fmt"
	"log"
	"os"

	"github.com/vishvananda/netlink"
)

func main() {
	name := os.Args[1]
	updates := make(chan netlink.LinkUpdate)
	if err := netlink.LinkSubscribe(updates, nil); err != nil {
		log.Fatal(err)
	}
	index := 0
	if link, err := netlink.LinkByName(name); err == nil {
		index = link.Attrs().Index
	}
	fmt.Println(name)
	for update := range updates {
		attributes := update.Attrs()
		if attributes.Name == name || attributes.Index == index {
			fmt.Println(name)
		}
	}
}
