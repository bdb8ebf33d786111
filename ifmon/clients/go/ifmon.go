// Package ifmon tells at once, and for certain, when a network interface is deleted, created again,
// renamed or moved to another network namespace.
//
// It asks the ifmon agent of the host (ifmon --serve, or ifmon.socket of systemd), which needs no
// privileges, and uses nothing but the standard library.
//
// The agent shows a client the network namespace in which its socket was made. A program that goes
// from namespace to namespace locks its goroutine to the thread (runtime.LockOSThread) and makes
// its calls there.
package ifmon

import (
	"context"
	"fmt"
	"net"
	"time"
)

// DefaultPath is where the agent listens.
const DefaultPath = "/run/ifmon/io.ifmon"

// Agent is the agent of this host. The zero value is the one at DefaultPath.
type Agent struct {
	// Path of its socket, if it is another one.
	Path string
}

// Target is an interface to watch.
type Target struct {
	Name string
	// Index of the device that should have the name, as net.Interface has it; 0 for any, or none.
	// When another device has the name as the watch begins, or none, Watching is followed by what
	// became of it.
	Index int
}

// WaitForChange waits until the interface is no longer the one with this index, whatever else
// happens in between, and says whether whoever runs something on top of it should restart that.
//
//	deleted, renamed, moved     true, a *GoneError that says which
//	the name on another device  true, nil
//	the watch has failed        true, why
//	the context has ended       false, an error that wraps the context's
//
// An interface that was changed before the call is told at once, so it does not matter how long
// ago the index was looked up. With the index 0 the interface is the one that has the name when the
// call is made; if none has, that is waited for.
func (a Agent) WaitForChange(ctx context.Context, name string, index int) (restart bool, err error) {
	watcher := a.Watch(ctx, Target{Name: name, Index: index})
	defer watcher.Close()
	for {
		event, err := watcher.Next()
		if err != nil {
			return ctx.Err() == nil, err
		}
		if event.Restart {
			return true, event.Err()
		}
	}
}

// Watch watches interfaces until the context ends or the Watcher is closed.
//
// The agent is called by the first Next. The first event of each name is Watching; from then on
// nothing is missed. Should the agent go away, as in an upgrade, the watch goes on when it is back:
// Resynced says so, and a change that happened meanwhile follows, with Recovered set.
func (a Agent) Watch(ctx context.Context, targets ...Target) *Watcher {
	path := a.Path
	if path == "" {
		path = DefaultPath
	}
	ctx, cancel := context.WithCancel(ctx)
	watcher := &Watcher{
		path:   path,
		ctx:    ctx,
		cancel: cancel,
		names:  make(names),
		wait:   wait,
	}
	for _, target := range targets {
		watcher.names[target.Name] = &known{index: target.Index}
	}
	return watcher
}

// Watcher hands out the events of a watch. It is for one goroutine at a time; Close and the end of
// the context come from any.
type Watcher struct {
	path   string
	ctx    context.Context
	cancel context.CancelFunc
	names  names
	conn   *connection
	// Events that follow from one that was handed out.
	queue []Event
	// How often in a row the agent could not be asked.
	failures int
	wait     func(context.Context, time.Duration) error
}

// Next waits for the next event. Whoever does not call it for long loses events, and is told
// Resynced, and what has changed.
//
// An error is final. When there is no agent, or not any more, that is after half a minute in which
// none has come.
func (w *Watcher) Next() (Event, error) {
	for {
		if len(w.queue) > 0 {
			event := w.queue[0]
			w.queue = w.queue[1:]
			return event, nil
		}
		event, err := w.receive()
		if err == nil {
			w.failures = 0
			w.queue = w.names.take(event)
			continue
		}
		if ended := w.ctx.Err(); ended != nil {
			return Event{}, fmt.Errorf("ifmon: stopped: %w", ended)
		}
		w.disconnect()
		if refused, ok := err.(*CallError); ok && !w.names.haveBegun() {
			return Event{}, refused
		}
		w.failures++
		pause, ok := waitAfter(w.failures)
		if !ok {
			return Event{}, err
		}
		if err := w.wait(w.ctx, pause); err != nil {
			return Event{}, fmt.Errorf("ifmon: stopped: %w", err)
		}
	}
}

// Close ends the watch.
func (w *Watcher) Close() error {
	w.cancel()
	return nil
}

func (w *Watcher) receive() (Event, error) {
	if w.conn == nil {
		if err := w.connect(); err != nil {
			return Event{}, err
		}
	}
	return w.conn.receive()
}

// connect calls the agent with what is known by now.
func (w *Watcher) connect() error {
	var dialer net.Dialer
	stream, err := dialer.DialContext(w.ctx, "unix", w.path)
	if err != nil {
		if ended := w.ctx.Err(); ended != nil {
			return fmt.Errorf("ifmon: stopped: %w", ended)
		}
		return fmt.Errorf("ifmon: the agent cannot be asked: %w", err)
	}
	conn := newConnection(w.ctx, stream)
	if err := conn.call(w.names.targets()); err != nil {
		conn.close()
		return err
	}
	w.names.resume()
	w.conn = conn
	return nil
}

func (w *Watcher) disconnect() {
	if w.conn != nil {
		w.conn.close()
		w.conn = nil
	}
}

// waitAfter says how long to wait after so many failures in a row; false when that was often
// enough.
func waitAfter(failures int) (time.Duration, bool) {
	const (
		first    = 50 * time.Millisecond
		last     = 5 * time.Second
		attempts = 12
	)
	if failures > attempts {
		return 0, false
	}
	pause := first << (failures - 1)
	if pause > last {
		pause = last
	}
	return pause, true
}

func wait(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
