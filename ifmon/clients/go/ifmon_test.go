package ifmon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// An agent that says what a test has it say.
type agent struct {
	*testing.T
	listener net.Listener
}

func newAgent(t *testing.T) (*agent, Agent) {
	path := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return &agent{t, listener}, Agent{Path: path}
}

// takes answers one call, of which it says what it expects, with events, and closes the connection.
func (a *agent) takes(expect map[string]int, events ...string) {
	stream, err := a.listener.Accept()
	if err != nil {
		a.Error(err)
		return
	}
	defer stream.Close()
	message, err := bufio.NewReader(stream).ReadString(0)
	if err != nil {
		a.Error(err)
		return
	}
	var call struct {
		Method     string
		Parameters targets
		More       bool
	}
	if err := json.Unmarshal([]byte(strings.TrimSuffix(message, "\x00")), &call); err != nil {
		a.Error(err)
	}
	asked := targets{Interfaces: []string{"wg0"}, Expect: expect}
	if call.Method != "io.ifmon.Watch" || !call.More || !reflect.DeepEqual(call.Parameters, asked) {
		a.Errorf("called with %q, not %v", message, asked)
	}
	for _, event := range events {
		reply := fmt.Sprintf(`{"parameters":{"interface":"wg0",%s},"continues":true}`, event)
		if strings.HasPrefix(event, "{") {
			reply = event
		}
		if _, err := stream.Write(append([]byte(reply), 0)); err != nil {
			a.Error(err)
		}
	}
}

func watch(t *testing.T, a Agent, index int) *Watcher {
	watcher := a.Watch(context.Background(), Target{"wg0", index})
	t.Cleanup(func() { watcher.Close() })
	watcher.wait = func(context.Context, time.Duration) error { return nil }
	return watcher
}

func next(t *testing.T, w *Watcher) string {
	t.Helper()
	event, err := w.Next()
	if err != nil {
		t.Fatal(err)
	}
	said := fmt.Sprintf("%s %d", event.Kind, event.Index)
	for _, flag := range []struct {
		name string
		set  bool
	}{{"changed", event.Changed}, {"recovered", event.Recovered}, {"restart", event.Restart}} {
		if flag.set {
			said += " " + flag.name
		}
	}
	if event.OldIndex != 0 {
		said += fmt.Sprintf(" old %d", event.OldIndex)
	}
	return said
}

// Neither keeps the agent, or the network namespace of its socket.
func TestCloseAndTheEndOfTheContextCloseTheConnection(t *testing.T) {
	for _, end := range []string{"close", "context"} {
		agent, a := newAgent(t)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		watcher := a.Watch(ctx, Target{"wg0", 0})
		ended := make(chan error, 1)
		go func() {
			stream, err := agent.listener.Accept()
			if err != nil {
				ended <- err
				return
			}
			defer stream.Close()
			reader := bufio.NewReader(stream)
			if _, err := reader.ReadString(0); err != nil {
				ended <- err
				return
			}
			reply := `{"parameters":{"interface":"wg0","event":"watching","ifindex":7},"continues":true}`
			if _, err := stream.Write(append([]byte(reply), 0)); err != nil {
				ended <- err
				return
			}
			_, err = reader.ReadByte()
			ended <- err
		}()
		if said := next(t, watcher); said != "watching 7" {
			t.Error(said)
		}
		// Nobody calls Next any more.
		if end == "close" {
			watcher.Close()
		} else {
			cancel()
		}
		if err := <-ended; err != io.EOF {
			t.Errorf("%s: %v", end, err)
		}
	}
}

// What follows when the agent goes away after some events and another one answers with others.
func TestAWatchGoesOnWithWhatIsKnown(t *testing.T) {
	const deleted = `"event":"deleted","ifindex":7,"restart":true`
	const renamed = `"event":"renamed","ifindex":7,"to":"wg1","restart":true`
	watching := func(index any) string { return fmt.Sprintf(`"event":"watching","ifindex":%v`, index) }
	for _, row := range []struct {
		name   string
		index  int
		before []string
		expect map[string]int
		after  []string
		told   []string
	}{
		{"unchanged", 0, []string{watching(7)}, map[string]int{"wg0": 7}, []string{watching(7)},
			[]string{"resynced 7"}},
		{"still absent", 0, []string{watching("null")}, nil, []string{watching("null")},
			[]string{"resynced 0"}},
		{"appeared", 0, []string{watching("null")}, nil, []string{watching(7)},
			[]string{"resynced 7 changed", "appeared 7 recovered"}},
		{"deleted", 0, []string{watching(7)}, map[string]int{"wg0": 7},
			[]string{watching("null"), deleted + `,"recovered":true`},
			[]string{"resynced 0 changed", "deleted 7 recovered restart"}},
		{"created again", 0, []string{watching(7), deleted}, nil, []string{watching(8)},
			[]string{"resynced 8 changed", "recreated 8 recovered restart old 7"}},
		// The index of a device that is gone is free for another one.
		{"created again with its index", 0, []string{watching(7), deleted}, nil, []string{watching(7)},
			[]string{"resynced 7 changed", "recreated 7 recovered restart old 7"}},
		{"renamed back", 0, []string{watching(7), renamed}, nil, []string{watching(7)},
			[]string{"resynced 7 changed", "returned 7 recovered"}},
		{"taken by another", 0, []string{watching(7), renamed}, nil, []string{watching(9)},
			[]string{"resynced 9 changed", "recreated 9 recovered restart old 7"}},
		// The agent went before it had said what became of the expected device.
		{"a verdict that was under way", 5, []string{watching(7)}, map[string]int{"wg0": 5},
			[]string{watching(7), `"event":"recreated","ifindex":7,"old_ifindex":5,"restart":true,"recovered":true`},
			[]string{"resynced 7 changed", "recreated 7 recovered restart old 5"}},
		{"two moves", 0, []string{watching(7), `"event":"resynced","ifindex":9,"changed":false`},
			map[string]int{"wg0": 9}, []string{watching(9)}, []string{"resynced 9"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			agent, address := newAgent(t)
			var expect map[string]int
			if row.index != 0 {
				expect = map[string]int{"wg0": row.index}
			}
			go func() {
				agent.takes(expect, row.before...)
				agent.takes(row.expect, append(row.after, `"event":"renamed","ifindex":1`)...)
			}()
			watcher := watch(t, address, row.index)
			for range row.before {
				next(t, watcher)
			}
			for _, told := range append(row.told, "renamed 1") {
				if said := next(t, watcher); said != told {
					t.Errorf("said %q, not %q", said, told)
				}
			}
		})
	}
}

func TestAnAgentThatStaysAwayIsAnError(t *testing.T) {
	for _, wasThere := range []bool{true, false} {
		agent, address := newAgent(t)
		watcher := watch(t, address, 0)
		var waits []time.Duration
		watcher.wait = func(_ context.Context, pause time.Duration) error {
			waits = append(waits, pause)
			return nil
		}
		if wasThere {
			go agent.takes(nil, `"event":"watching","ifindex":7`)
			next(t, watcher)
		}
		agent.listener.Close()
		if _, err := watcher.Next(); err == nil || !strings.Contains(err.Error(), "agent") {
			t.Errorf("the error is %v", err)
		}
		if len(waits) != 12 || waits[0] != 50*time.Millisecond || waits[11] != 5*time.Second {
			t.Errorf("waited for %v", waits)
		}
	}
}

// An engine that begins its watch while the agent is started again goes on like any other.
func TestAnAgentThatIsAwayAtTheBeginningIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent")
	watcher := watch(t, Agent{Path: path}, 7)
	watcher.wait = func(context.Context, time.Duration) error {
		listener, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		t.Cleanup(func() { listener.Close() })
		agent := &agent{t, listener}
		go agent.takes(map[string]int{"wg0": 7}, `"event":"watching","ifindex":7`)
		return nil
	}
	if said := next(t, watcher); said != "watching 7" {
		t.Errorf("said %q", said)
	}
}

func TestARefusalIsAnErrorAtOnce(t *testing.T) {
	agent, address := newAgent(t)
	go agent.takes(nil, `{"error":"io.ifmon.TooMany","parameters":{"what":"clients"}}`)
	_, err := watch(t, address, 0).Next()
	var refused *CallError
	if !errors.As(err, &refused) || refused.Name != "io.ifmon.TooMany" || refused.Reason != "clients" {
		t.Errorf("the error is %v", err)
	}
}

func TestWhatAnEngineIsTold(t *testing.T) {
	for _, row := range []struct {
		event string
		error string
	}{
		{`"event":"deleted","ifindex":7,"restart":true`, "ifmon: wg0 was deleted"},
		{`"event":"renamed","ifindex":7,"to":"x","restart":true`, "ifmon: wg0 was renamed to x"},
		{`"event":"moved","ifindex":7,"restart":true`, "ifmon: wg0 was moved to another network namespace"},
		{`"event":"recreated","ifindex":8,"old_ifindex":7,"restart":true`, ""},
	} {
		agent, address := newAgent(t)
		go agent.takes(map[string]int{"wg0": 7}, `"event":"watching","ifindex":7`,
			`"event":"resynced","ifindex":7,"lost":3,"changed":false`, row.event)
		restart, err := address.WaitForChange(context.Background(), "wg0", 7)
		said := ""
		var gone *GoneError
		if errors.As(err, &gone) {
			said = err.Error()
		}
		if !restart || said != row.error {
			t.Errorf("%s: %v, %v", row.event, restart, err)
		}
	}
}

func TestTheEndOfTheContextCallsForNoRestart(t *testing.T) {
	agent, address := newAgent(t)
	ctx, cancel := context.WithCancel(context.Background())
	// It never answers.
	go func() {
		stream, err := agent.listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer stream.Close()
		_, _ = bufio.NewReader(stream).ReadString(0)
		cancel()
		// Until the client has closed it.
		_, _ = stream.Read(make([]byte, 1))
	}()
	restart, err := address.WaitForChange(ctx, "wg0", 7)
	if restart || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", restart, err)
	}
	if restart, err = address.WaitForChange(ctx, "wg0", 7); restart || !errors.Is(err, context.Canceled) {
		t.Errorf("called after the end: %v, %v", restart, err)
	}
}
