package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// An op is one kind of work, done by several subjects on the same Redis with the
// same payload.
type op struct {
	name     string
	title    string // for the table and the plots
	full     bool   // left out of a quick run
	subjects []subject
}

// A subject is one library's way, or the raw limit, configured as its own
// documentation advises.
type subject struct {
	name  string
	setup func(h *harness) (body, error)
}

// A body does the work once. It checks what it got and returns an error if that
// is not the right thing, so that nobody is quick by doing something else.
type body struct {
	do func(c *caller) error
}

// harness is what subjects are set up on.
type harness struct {
	srv     *server
	wire    *wire
	closers []func() // of the subjects set up so far
}

func (h *harness) later(f func()) { h.closers = append(h.closers, f) }

// closeSubjects ends the clients of all subjects set up so far.
func (h *harness) closeSubjects() {
	for _, f := range h.closers {
		f()
	}
	h.closers = nil
}

// goRedis returns a go-redis client with the library's default options.
func (h *harness) goRedis(change ...func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: h.srv.addr, Dialer: h.wire.dial}
	for _, f := range change {
		f(o)
	}
	c := redis.NewClient(o)
	h.later(func() { c.Close() })
	return c
}

// rueidisOption returns rueidis' default options.
func (h *harness) rueidisOption() rueidis.ClientOption {
	return rueidis.ClientOption{
		InitAddress: []string{h.srv.addr},
		DialCtxFn: func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return h.wire.dial(ctx, "tcp", addr)
		},
	}
}

// setUp sets a subject up with an empty Redis' share of its own: names of keys
// begin with each library's own prefix.
func (h *harness) setUp(o op, s subject) (*running, error) {
	b, err := s.setup(h)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: set up: %w", o.name, s.name, err)
	}
	return &running{name: s.name, body: b}, nil
}

// population is how many sessions, limiter keys and cached values there are.
const population = 1024
