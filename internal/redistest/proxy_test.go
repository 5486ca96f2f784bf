package redistest_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// behindProxy returns a server, a proxy and a client through it that does not
// retry and waits for a reply so long.
func behindProxy(t *testing.T, wait time.Duration) (direct, rdb *redis.Client, p *redistest.Proxy) {
	t.Helper()
	s := redistest.Start(t)
	p = redistest.NewProxy(t, s.Network(), s.Addr())
	rdb = s.Client(func(o *redis.Options) {
		o.Network, o.Addr = "tcp", p.Addr()
		o.MaxRetries, o.DialerRetries = -1, 1
		o.ReadTimeout, o.WriteTimeout = wait, time.Minute
	})
	redistest.Await(t, "a connection", func() error { return rdb.Ping(ctx).Err() })
	return s.Client(), rdb, p
}

func TestProxyFaults(t *testing.T) {
	t.Parallel()
	isTimeout := func(err error) bool {
		var netErr net.Error
		return errors.As(err, &netErr) && netErr.Timeout()
	}
	isEOF := func(err error) bool { return errors.Is(err, io.EOF) }
	isReset := func(err error) bool { return isEOF(err) || errors.Is(err, syscall.ECONNRESET) }
	isGarbage := func(err error) bool { return err != nil && strings.Contains(err.Error(), "?what") }
	for _, tt := range []struct {
		name     string
		fault    redistest.Fault
		want     func(error) bool
		executed int
	}{
		{"lose reply", redistest.Fault{LoseReply: true}, isTimeout, 1},
		{"swallow request", redistest.Fault{SwallowRequest: true}, isTimeout, 0},
		{"late request", redistest.Fault{DelayRequest: 2 * time.Second}, isTimeout, 1},
		{"late reply", redistest.Fault{DelayReply: 2 * time.Second}, isTimeout, 1},
		{"cut before", redistest.Fault{CutBefore: true}, isEOF, 0},
		{"cut after", redistest.Fault{CutAfter: true}, isEOF, 1},
		{"reset before", redistest.Fault{CutBefore: true, Reset: true}, isReset, 0},
		{"reset after", redistest.Fault{CutAfter: true, Reset: true}, isReset, 1},
		{"truncate", redistest.Fault{TruncateReply: 2}, isEOF, 1},
		{"garbage", redistest.Fault{Garbage: []byte("?what\r\n")}, isGarbage, 1},
		{"mute", redistest.Fault{Match: "nothing", Mute: true}, isTimeout, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// Long enough for a request to pass: what a client no longer waits for
			// when it closes its connection, the proxy doesn't pass on.
			direct, rdb, p := behindProxy(t, time.Second)
			f := tt.fault
			if f.Match == "" {
				f.Match = "INCR"
			}
			p.Set(f)
			err := rdb.Incr(ctx, "n").Err()
			for try := 0; !f.Mute && p.Hits() == 0 && try < 30; try++ { // it did not get as far in time
				err = rdb.Incr(ctx, "n").Err()
			}
			if !tt.want(err) {
				t.Errorf("INCR = %v", err)
			}
			if want := 1; !f.Mute && p.Hits() != want {
				t.Errorf("Hits = %d; want %d", p.Hits(), want)
			}
			executed := func() error { // it may be on its way
				if got, _ := direct.Get(ctx, "n").Int(); got != tt.executed {
					return fmt.Errorf("INCR was executed %d times; want %d", got, tt.executed)
				}
				return nil
			}
			redistest.Await(t, "INCR", executed)
			p.Clear()
			after := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1, ReadTimeout: time.Minute})
			defer after.Close()
			if n, err := after.Incr(ctx, "n").Result(); err != nil || n != int64(tt.executed)+1 {
				t.Errorf("INCR after Clear = %d, %v; want %d", n, err, tt.executed+1)
			}
		})
	}
}

func TestProxyLosesExactlyOneReply(t *testing.T) {
	t.Parallel()
	direct, rdb, p := behindProxy(t, time.Minute)
	p.Set(redistest.Fault{Match: "incr", Skip: 3, Times: 1, CutAfter: true})
	var failed []int
	for i := range 10 {
		if err := rdb.Incr(ctx, "n").Err(); err != nil {
			failed = append(failed, i)
		}
		if err := rdb.Get(ctx, "n").Err(); err != nil { // does not match
			t.Errorf("GET = %v", err)
		}
	}
	if got := fmt.Sprint(failed); got != "[3]" || p.Hits() != 1 {
		t.Errorf("INCRs that failed = %v, Hits = %d; want [3], 1", got, p.Hits())
	}
	if got, _ := direct.Get(ctx, "n").Int(); got != 10 {
		t.Errorf("INCRs executed = %d; want 10", got)
	}

	// go-redis' own retry executes the command again: what this proxy is for.
	retrying := redis.NewClient(&redis.Options{Addr: p.Addr(), DisableIdentity: true, ReadTimeout: time.Minute})
	defer retrying.Close()
	p.Set(redistest.Fault{Match: "incr", Times: 1, CutAfter: true})
	if got, err := retrying.Incr(ctx, "n").Result(); got != 12 || err != nil {
		t.Errorf("INCR with a retry = %d, %v; want 12, counted twice", got, err)
	}
}

func TestProxyStrikesPipelineWhole(t *testing.T) {
	t.Parallel()
	direct, rdb, p := behindProxy(t, time.Minute)
	p.Set(redistest.Fault{Match: "marker", LoseReply: true})
	value := strings.Repeat("x", 1<<20) // the request comes in many pieces, the name in the first
	done := make(chan error, 1)
	go func() {
		_, err := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.Incr(ctx, "marker")
			pipe.Set(ctx, "big", value, 0)
			pipe.Incr(ctx, "n")
			return nil
		})
		done <- err
	}()
	ran := func() error {
		if got, _ := direct.Get(ctx, "n").Int(); got != 1 {
			return fmt.Errorf("it ran %d times; want 1", got)
		}
		return nil
	}
	redistest.Await(t, "the pipeline's last command", ran)
	p.Cut(false)
	if err := <-done; err == nil {
		t.Error("a pipeline whose reply is lost succeeded; want an error")
	}
	if err := ran(); err != nil {
		t.Error(err)
	}
}

func TestProxyDrip(t *testing.T) {
	t.Parallel()
	_, rdb, p := behindProxy(t, time.Minute)
	rdb.Set(ctx, "k", "0123456789", 0)
	p.Set(redistest.Fault{Match: "get", Drip: 2 * time.Millisecond})
	start := time.Now()
	if got, err := rdb.Get(ctx, "k").Result(); got != "0123456789" || err != nil {
		t.Errorf("GET = %q, %v; want the whole value", got, err)
	}
	if took := time.Since(start); took < 30*time.Millisecond { // $10\r\n 0123456789 \r\n: 17 bytes
		t.Errorf("GET took %v; want 17 bytes at 2 ms", took)
	}
}

// go-redis sees a reset as EOF, so this looks at the socket.
func TestProxyResets(t *testing.T) {
	t.Parallel()
	_, _, p := behindProxy(t, time.Minute)
	for _, tt := range []struct {
		fault redistest.Fault
		want  error
	}{
		{redistest.Fault{CutAfter: true}, io.EOF},
		{redistest.Fault{CutAfter: true, Reset: true}, syscall.ECONNRESET},
	} {
		p.Set(tt.fault)
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, "PING\r\n")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, tt.want) {
			t.Errorf("read with %+v = %v; want %v", tt.fault, err, tt.want)
		}
	}
}

func TestProxyConnections(t *testing.T) {
	t.Parallel()
	_, rdb, p := behindProxy(t, time.Minute)
	ping := func() error { return rdb.Ping(ctx).Err() }
	p.Refuse()
	if err := ping(); err != nil {
		t.Errorf("PING on an open connection while refusing = %v; want nil", err)
	}
	p.Cut(true)
	var op *net.OpError
	for range 2 { // the pool may meet the cut connection first
		if err := ping(); err == nil {
			t.Error("PING while refusing = nil; want an error")
		} else {
			errors.As(err, &op)
		}
	}
	if op == nil || op.Op != "dial" {
		t.Errorf("last error while refusing = %v; want a failed dial", op)
	}
	p.Accept(t)
	before := p.Accepted()
	if err := ping(); err != nil {
		t.Errorf("PING after Accept = %v", err)
	}
	if got := p.Accepted() - before; got != 1 {
		t.Errorf("connections accepted = %d; want 1", got)
	}
}
