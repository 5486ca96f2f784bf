package demo

import (
	"encoding/json"
	"sync"
)

// message is one event for the pages that are open.
type message struct {
	event string
	data  string
}

// hub hands messages to all streams of this process.
type hub struct {
	mu   sync.Mutex
	subs map[chan message]struct{}
}

// subscribe returns a channel of messages and a function that ends them. A
// stream that falls behind misses messages rather than delaying the others.
func (h *hub) subscribe() (<-chan message, func()) {
	ch := make(chan message, 32)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		h.subs = make(map[chan message]struct{})
	}
	h.subs[ch] = struct{}{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, ch)
	}
}

// tell sends v, as JSON, to all streams.
func (h *hub) tell(event string, v any) {
	m := jsonMessage(event, v)
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subs {
		select {
		case ch <- m:
		default:
		}
	}
}

func jsonMessage(event string, v any) message {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types can always be encoded
	}
	return message{event, string(data)}
}
