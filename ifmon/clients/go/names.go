package ifmon

import "sort"

// What is known of one name, from which a watch goes on when the agent was away.
type known struct {
	hasBegun bool
	// The device that has the name, or the one that is expected to have it; 0 while none does.
	index int
	// The device that had the name last, while none does; and that it does not exist any more, so
	// that another one can have its index.
	last    int
	deleted bool
	// The next Watching is that of a call that goes on with an earlier one.
	resumes bool
}

type names map[string]*known

func (n names) targets() targets {
	asked := targets{Interfaces: []string{}, Expect: make(map[string]int)}
	for name, known := range n {
		asked.Interfaces = append(asked.Interfaces, name)
		if known.index != 0 {
			asked.Expect[name] = known.index
		}
	}
	sort.Strings(asked.Interfaces)
	return asked
}

func (n names) haveBegun() bool {
	for _, known := range n {
		if known.hasBegun {
			return true
		}
	}
	return false
}

// resume has the names go on in another call.
func (n names) resume() {
	for _, known := range n {
		known.resumes = known.hasBegun
	}
}

// take takes an event of the agent, and returns what there is to be told.
func (n names) take(event Event) []Event {
	known := n[event.Interface]
	if known == nil {
		return nil
	}
	if event.Kind == Watching && known.resumes {
		known.resumes = false
		return known.resync(event)
	}
	known.apply(event)
	return []Event{event}
}

func (k *known) apply(event Event) {
	switch event.Kind {
	case Watching:
		k.hasBegun = true
		// If it is not the expected one, what became of that follows, and has not been told yet.
		if k.index == 0 {
			k.index = event.Index
		}
	case Resynced:
		// After two moves the same device can have another index.
		if !event.Changed && event.Index != 0 {
			k.index = event.Index
		}
	case Deleted, Renamed, Moved:
		k.index, k.last, k.deleted = 0, event.Index, event.Kind == Deleted
	case Appeared, Recreated, Returned:
		k.index = event.Index
	}
}

// resync makes what there is to be told of the first event of a call that goes on with an earlier
// one. A name that had a device was asked for with that device, so that the agent itself tells what
// became of it; where none had the name, that follows from who has it now.
func (k *known) resync(watching Event) []Event {
	resynced := watching
	resynced.Kind = Resynced
	resynced.Changed = watching.Index != k.index
	if k.index != 0 || !resynced.Changed {
		return []Event{resynced}
	}
	verdict := watching
	verdict.Recovered = true
	switch {
	case k.last == 0:
		verdict.Kind = Appeared
	case k.last == watching.Index && !k.deleted:
		verdict.Kind = Returned
	default:
		verdict.Kind, verdict.Restart, verdict.OldIndex = Recreated, true, k.last
	}
	k.apply(verdict)
	return []Event{resynced, verdict}
}
