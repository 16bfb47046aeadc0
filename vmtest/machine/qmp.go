package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// maxQMPLine bounds a line of QMP, in bytes.
const maxQMPLine = 4 << 20

// qmp is a client of the QEMU Machine Protocol (QEMU 7.2,
// docs/interop/qmp-spec.txt).
type qmp struct {
	mu      sync.Mutex
	conn    io.Writer
	nextID  int
	waiting map[int]chan qmpReply
	ended   chan struct{} // closed when the connection ends
}

type qmpReply struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// newQMP starts reading from conn; onEvent is called for each event, in order.
func newQMP(conn io.ReadWriter, onEvent func(name string, data json.RawMessage)) *qmp {
	q := &qmp{conn: conn, waiting: map[int]chan qmpReply{}, ended: make(chan struct{})}
	go func() {
		defer close(q.ended)
		lines := bufio.NewScanner(conn)
		lines.Buffer(nil, maxQMPLine)
		for lines.Scan() {
			var r qmpReply
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return
			}
			switch {
			case r.Event != "":
				onEvent(r.Event, r.Data)
			case r.ID != nil:
				q.mu.Lock()
				reply := q.waiting[*r.ID]
				delete(q.waiting, *r.ID)
				q.mu.Unlock()
				if reply != nil {
					reply <- r
				}
			}
		}
	}()
	return q
}

// do sends a command and waits for its reply. result may be nil.
func (q *qmp) do(ctx context.Context, command string, args map[string]any, result any) error {
	q.mu.Lock()
	q.nextID++
	id, reply := q.nextID, make(chan qmpReply, 1)
	q.waiting[id] = reply
	m := map[string]any{"execute": command, "id": id}
	if args != nil {
		m["arguments"] = args
	}
	line, err := json.Marshal(m)
	if err == nil {
		_, err = q.conn.Write(append(line, '\n'))
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case r := <-reply:
		if r.Error != nil {
			return fmt.Errorf("QMP %s: %s: %s", command, r.Error.Class, r.Error.Desc)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(r.Return, result); err != nil {
			return fmt.Errorf("QMP %s: reply: %w", command, err)
		}
		return nil
	case <-q.ended:
		return fmt.Errorf("QMP %s: %w", command, errLost)
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	}
}
