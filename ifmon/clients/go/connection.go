package ifmon

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
)

// What no reply exceeds.
const replyBytes = 64 << 10

// A call of the varlink protocol: JSON objects that end with NUL.
type connection struct {
	stream net.Conn
	reader *bufio.Reader
	closed chan struct{}
}

func newConnection(ctx context.Context, stream net.Conn) *connection {
	conn := &connection{
		stream: stream,
		reader: bufio.NewReaderSize(stream, replyBytes),
		closed: make(chan struct{}),
	}
	go func() {
		select {
		case <-ctx.Done():
			// Whoever reads or writes is woken by that.
			_ = stream.Close()
		case <-conn.closed:
		}
	}()
	return conn
}

func (c *connection) close() {
	close(c.closed)
	_ = c.stream.Close()
}

// What Watch of io.ifmon takes.
type targets struct {
	Interfaces []string       `json:"interfaces"`
	Expect     map[string]int `json:"expect,omitempty"`
}

func (c *connection) call(asked targets) error {
	message, err := json.Marshal(struct {
		Method     string  `json:"method"`
		Parameters targets `json:"parameters"`
		More       bool    `json:"more"`
	}{"io.ifmon.Watch", asked, true})
	if err != nil {
		return fmt.Errorf("ifmon: %w", err)
	}
	if _, err := c.stream.Write(append(message, 0)); err != nil {
		return fmt.Errorf("ifmon: the agent has gone: %w", err)
	}
	return nil
}

func (c *connection) receive() (Event, error) {
	message, err := c.reader.ReadSlice(0)
	if err != nil {
		return Event{}, fmt.Errorf("ifmon: the agent has gone: %w", err)
	}
	var reply struct {
		Parameters json.RawMessage `json:"parameters"`
		Error      string          `json:"error"`
	}
	if err := json.Unmarshal(message[:len(message)-1], &reply); err != nil {
		return Event{}, fmt.Errorf("ifmon: the agent sends no reply: %w", err)
	}
	if reply.Error != "" {
		// Each error has one of these.
		var why struct {
			Reason    string `json:"reason"`
			What      string `json:"what"`
			Parameter string `json:"parameter"`
		}
		_ = json.Unmarshal(reply.Parameters, &why)
		return Event{}, &CallError{reply.Error, why.Reason + why.What + why.Parameter}
	}
	var event Event
	if err := json.Unmarshal(reply.Parameters, &event); err != nil {
		return Event{}, fmt.Errorf("ifmon: the agent sends no event: %w", err)
	}
	return event, nil
}
