package ifmon

import (
	"fmt"
	"time"
)

// Kind says what happened.
type Kind string

const (
	// Watching is the first event of each name: from here on nothing is missed.
	Watching Kind = "watching"
	// Deleted: the device is gone, also with its namespace or the other end of its veth pair.
	Deleted Kind = "deleted"
	// Renamed: the device has another name now, To.
	Renamed Kind = "renamed"
	// Moved: the device went to another network namespace.
	Moved Kind = "moved"
	// Appeared: nobody had the name since the watch began, and now a device has.
	Appeared Kind = "appeared"
	// Recreated: the name exists again, on another device.
	Recreated Kind = "recreated"
	// Returned: the name exists again, on the same device.
	Returned Kind = "returned"
	// Resynced: events were lost on the way, and the state was read again.
	Resynced Kind = "resynced"
)

// Event is something that happened to a watched interface. An index is the kernel's, of a device
// within its network namespace; it is 0 where there is none, or where it cannot be known.
type Event struct {
	Time      time.Time `json:"time"`
	Kind      Kind      `json:"event"`
	Interface string    `json:"interface"`
	// Netns is the inode number of the network namespace.
	Netns     uint64 `json:"netns"`
	NetnsName string `json:"netns_name,omitempty"`
	Index     int    `json:"ifindex"`
	// Restart: the interface is no longer the one that its user set up.
	Restart bool `json:"restart"`
	// Backend is how the agent learns of changes.
	Backend string `json:"backend"`
	// By is who made the change, where the agent knows it and tells it to this client.
	By *Actor `json:"by,omitempty"`
	// To is the new name (Renamed).
	To string `json:"to,omitempty"`
	// ToNetns, ToIndex and ToNetnsName say where the device went (Moved), as far as that is known.
	ToNetns     uint64 `json:"to_netns,omitempty"`
	ToIndex     int    `json:"to_ifindex,omitempty"`
	ToNetnsName string `json:"to_netns_name,omitempty"`
	// OldIndex is that of the device that had the name before (Recreated).
	OldIndex int `json:"old_ifindex,omitempty"`
	// Lost is how many events were lost (Resynced); nil where nobody counted.
	Lost *uint64 `json:"lost,omitempty"`
	// Changed: the state was found changed (Resynced). What has changed is the next event of this
	// interface.
	Changed bool `json:"changed,omitempty"`
	// Recovered: the change was found by reading the state again.
	Recovered bool `json:"recovered,omitempty"`
}

// Actor is who made a change. What the kernel does not say is nil.
type Actor struct {
	PID  *int    `json:"pid"`
	Comm *string `json:"comm"`
	UID  *int    `json:"uid"`
	// Cgroup is the id of its cgroup.
	Cgroup *uint64 `json:"cgroup"`
	// Kthread: a kernel thread acted for somebody.
	Kthread    *bool      `json:"kthread"`
	CgroupPath string     `json:"cgroup_path,omitempty"`
	Container  *Container `json:"container,omitempty"`
	Unit       string     `json:"unit,omitempty"`
	Pod        string     `json:"pod,omitempty"`
}

// Container is the innermost container that a process is in.
type Container struct {
	Runtime string `json:"runtime"`
	ID      string `json:"id"`
}

// Err returns the event as a *GoneError if it leaves the watch without its interface, else nil: an
// interface that was recreated calls for a restart, but nothing is wrong with it.
func (e Event) Err() error {
	switch e.Kind {
	case Deleted, Renamed, Moved:
		return &GoneError{e}
	default:
		return nil
	}
}

// GoneError says that an interface was deleted, renamed or moved.
type GoneError struct {
	Event Event
}

func (e *GoneError) Error() string {
	switch e.Event.Kind {
	case Renamed:
		return fmt.Sprintf("ifmon: %s was renamed to %s", e.Event.Interface, e.Event.To)
	case Moved:
		return fmt.Sprintf("ifmon: %s was moved to another network namespace", e.Event.Interface)
	default:
		return fmt.Sprintf("ifmon: %s was %s", e.Event.Interface, e.Event.Kind)
	}
}

// CallError says that the agent refuses a call.
type CallError struct {
	// Name is that of the error in io.ifmon.varlink or org.varlink.service.
	Name string
	// Reason is for people, and may be empty.
	Reason string
}

func (e *CallError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("ifmon: the agent refuses: %s", e.Name)
	}
	return fmt.Sprintf("ifmon: the agent refuses: %s (%s)", e.Reason, e.Name)
}
