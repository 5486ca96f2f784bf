package faults_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/redporch/redporch/internal/redistest"
)

// longest bounds a request of each tenant: the calls it may have to wait for, one
// timeout each, and what a busy machine adds. A client with default settings
// would wait for 1.7 s when connections are refused, and for 10 s or more when
// nobody answers.
var longest = map[string]time.Duration{
	"session":    2*timeout + 600*time.Millisecond,
	"ratelimit":  2*timeout + 600*time.Millisecond,
	"cacheaside": 2*timeout + 600*time.Millisecond,
	"middleware": 3*timeout + 600*time.Millisecond,
}

// fault is a row of the matrix.
type fault struct {
	name string
	// place makes the Redis; nil means a server behind a proxy.
	place func(t *testing.T) *place
	// strike begins the fault, mend ends it. Either may be nil.
	strike, mend func(t *testing.T, p *place)
	// during harms while requests are made, until ctx ends.
	during func(ctx context.Context, t *testing.T, p *place)
	// lasts is how long requests are made under the fault; 0 means 300 ms.
	lasts time.Duration

	want    answers
	sees    string   // what some error says, as proof that the fault was the one meant
	forgets []string // tenants whose data Redis loses
}

// place is one Redis and the ways to it.
type place struct {
	server  *redistest.Server
	proxy   *redistest.Proxy
	mini    *miniredis.Miniredis
	admin   *redis.Client // goes around the proxy, with a connection of its own
	connect func() redis.UniversalClient
	ahead   atomic.Int64 // nanoseconds that clients' clocks are ahead, for certificates
	undo    func()
}

// behindProxy is a server that clients reach through a proxy, as the user app.
// They have go-redis' default options: no timeout of theirs is below 5 s.
func behindProxy(opts ...redistest.Option) func(t *testing.T) *place {
	return func(t *testing.T) *place {
		t.Helper()
		opts := append([]redistest.Option{redistest.Proxied(),
			redistest.Set("user", "default on nopass ~* &* +@all", "app on >secret ~* &* +@all")}, opts...)
		s := redistest.Start(t, opts...)
		p := &place{server: s, proxy: s.Proxy}
		p.admin = s.Client(func(o *redis.Options) { o.PoolSize, o.MinIdleConns = 1, 1 })
		p.connect = func() redis.UniversalClient {
			o := &redis.Options{Addr: p.proxy.Addr(), Username: "app", Password: "secret"}
			if o.TLSConfig = s.TLSConfig(); o.TLSConfig != nil {
				o.TLSConfig.Time = func() time.Time { return time.Now().Add(time.Duration(p.ahead.Load())) }
				o.DialerRetries = 1 // else the deadline comes before the reason
			}
			return redis.NewClient(o)
		}
		return p
	}
}

func inProcess(t *testing.T) *place {
	m, _ := redistest.Mini(t)
	m.SetTime(time.Now())
	return &place{mini: m, connect: func() redis.UniversalClient {
		return redis.NewClient(&redis.Options{Addr: m.Addr()})
	}}
}

func oneNodeCluster(t *testing.T) *place {
	cl := redistest.StartCluster(t, 1, false)
	return &place{
		server:  cl.Masters[0],
		admin:   cl.Masters[0].Client(),
		connect: func() redis.UniversalClient { return redis.NewClusterClient(&redis.ClusterOptions{Addrs: cl.Addrs()}) },
	}
}

// do runs a command around the proxy.
func (p *place) do(t *testing.T, args ...any) {
	t.Helper()
	if err := p.admin.Do(context.Background(), args...).Err(); err != nil {
		t.Errorf("%v: %v", args, err)
	}
}

func proxied(f redistest.Fault) func(*testing.T, *place) {
	return func(_ *testing.T, p *place) { p.proxy.Set(f) }
}

func clear(_ *testing.T, p *place) { p.proxy.Clear() }

func command(args ...any) func(*testing.T, *place) {
	return func(t *testing.T, p *place) { t.Helper(); p.do(t, args...) }
}

// sprinkle strikes single requests again and again. Half of the time nothing waits
// to strike: otherwise it would strike each probe of a breaker that has opened.
func sprinkle(list ...redistest.Fault) func(context.Context, *testing.T, *place) {
	return func(ctx context.Context, _ *testing.T, p *place) {
		for n := 0; ctx.Err() == nil; n++ {
			p.proxy.Set(list[n%len(list)])
			sleep(ctx, 15*time.Millisecond)
			p.proxy.Clear()
			sleep(ctx, 15*time.Millisecond)
		}
		p.proxy.Clear()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// each keeps doing something.
func each(every time.Duration, f func(t *testing.T, p *place)) func(context.Context, *testing.T, *place) {
	return func(ctx context.Context, t *testing.T, p *place) {
		for ctx.Err() == nil {
			f(t, p)
			sleep(ctx, every)
		}
	}
}

var faults = []fault{
	{
		name:   "connection refused",
		strike: func(_ *testing.T, p *place) { p.proxy.Refuse(); p.proxy.Cut(false) },
		mend:   func(t *testing.T, p *place) { p.proxy.Accept(t) },
		want:   down, lasts: 700 * time.Millisecond,
	},
	{
		name:   "black hole: requests vanish",
		strike: proxied(redistest.Fault{SwallowRequest: true}), mend: clear,
		want: down, lasts: 700 * time.Millisecond,
	},
	{
		name:   "mute: replies vanish",
		strike: proxied(redistest.Fault{Mute: true}), mend: clear,
		want: down, lasts: 700 * time.Millisecond,
	},
	{
		name:   "server stopped (SIGSTOP)",
		strike: func(_ *testing.T, p *place) { p.server.Pause() },
		mend:   func(_ *testing.T, p *place) { p.server.Resume() },
		want:   down, lasts: 700 * time.Millisecond,
	},
	{
		name:   "slow: 50 ms",
		strike: proxied(redistest.Fault{DelayReply: 50 * time.Millisecond}), mend: clear,
		want: healthy, lasts: 500 * time.Millisecond,
	},
	{
		name:   "slow: 2 s",
		strike: proxied(redistest.Fault{DelayReply: 2 * time.Second}), mend: clear,
		want: down, lasts: 600 * time.Millisecond,
	},
	{
		name:   "reply lost after execution",
		during: sprinkle(redistest.Fault{Match: "evalsha", Times: 1, LoseReply: true}, redistest.Fault{Times: 1, LoseReply: true}),
		lasts:  600 * time.Millisecond,
		want:   healthy.and(down),
	},
	{
		name: "cut before, after, and in the middle of the reply",
		during: sprinkle(redistest.Fault{Match: "evalsha", Times: 1, CutAfter: true}, redistest.Fault{Times: 1, TruncateReply: 3},
			redistest.Fault{Match: "evalsha", Times: 1, TruncateReply: 2, Reset: true}, redistest.Fault{Times: 2, CutBefore: true, Reset: true}),
		lasts: 1500 * time.Millisecond,
		want:  healthy.and(down),
	},
	{
		name: "garbage instead of the reply",
		during: sprinkle(redistest.Fault{Match: "evalsha", Times: 1, Garbage: []byte("\x00\xff nonsense\r\n")},
			redistest.Fault{Match: "get", Times: 1, Garbage: []byte("$-7\r\n*9999999999\r\n")}),
		lasts: 600 * time.Millisecond,
		want:  healthy.and(down),
	},
	{
		name:  "loading (restart from a snapshot)",
		place: behindProxy(redistest.Set("enable-debug-command", "yes"), redistest.Set("key-load-delay", "2000"), redistest.Set("loading-process-events-interval-bytes", "1024")),
		strike: func(t *testing.T, p *place) {
			p.do(t, "debug", "populate", 400, "filler", 400)
			p.do(t, "save")
			p.server.Kill()
		},
		during: func(_ context.Context, t *testing.T, p *place) {
			p.server.Restart() // returns when loading is over
		},
		lasts: 900 * time.Millisecond,
		want:  down.and(healthy), sees: "LOADING",
	},
	{
		name:   "read-only (the server becomes a replica)",
		strike: command("replicaof", "127.0.0.1", "1"), mend: command("replicaof", "no", "one"),
		want: down.but("cacheaside", "queued", "cached", "loaded"), sees: "READONLY",
	},
	{
		name:   "out of memory",
		strike: command("config", "set", "maxmemory", "1"), mend: command("config", "set", "maxmemory", "0"),
		// What frees memory goes on: invalidations, and logouts (TestLogoutWithoutMemory).
		want: down.but("cacheaside", "loaded", "invalidated", "cached"), sees: "OOM",
	},
	{
		name:   "no permission",
		strike: command("acl", "setuser", "app", "-@all"), mend: command("acl", "setuser", "app", "+@all"),
		want: down, sees: "NOPERM",
	},
	{
		name: "credentials revoked",
		strike: func(t *testing.T, p *place) {
			p.do(t, "acl", "setuser", "app", "off")
			p.do(t, "client", "kill", "user", "app")
		},
		mend: command("acl", "setuser", "app", "on"),
		want: down, sees: "WRONGPASS",
	},
	{
		name:   "scripts forgotten (SCRIPT FLUSH)",
		during: each(5*time.Millisecond, command("script", "flush")),
		want:   healthy,
	},
	{
		name: "max clients",
		strike: func(t *testing.T, p *place) {
			p.do(t, "config", "set", "maxclients", 1)
			p.proxy.Cut(false)
		},
		mend: command("config", "set", "maxclients", 1000),
		want: down,
	},
	{
		name:   "wrong type at every key",
		strike: func(t *testing.T, p *place) { replace(t, p, "list") },
		mend:   func(t *testing.T, p *place) { p.undo() },
		want: answers{
			"session":    {"error"},
			"ratelimit":  {"error", "strict error"},
			"cacheaside": {"loaded", "invalidated", "cached"},
			"middleware": {"session 500", "plain 500"},
		},
		sees: "not a limiter's",
	},
	{
		name:   "garbage at every key",
		strike: func(t *testing.T, p *place) { replace(t, p, "garbage") },
		mend:   func(t *testing.T, p *place) { p.undo() },
		want:   healthy.but("session", "gone").but("ratelimit", "error", "strict error").but("middleware", "session 500", "session 401", "plain 500"),
		sees:   "not a limiter's",
	},
	{
		name: "garbage among a session's fields",
		strike: func(t *testing.T, p *place) {
			for _, k := range p.admin.Keys(context.Background(), "faults:*session:*").Val() {
				p.do(t, "hset", k, "x", "", "y", "\x00\xff", "\x01", "z", "\xff\xfe", "\x02\x00", "w9", strings.Repeat("\x07", 1000))
			}
		},
		want: healthy,
	},
	{
		name:   "FLUSHALL",
		during: each(100*time.Millisecond, command("flushall")),
		want: healthy.but("session", "gone", "ok").
			but("middleware", "session 401", "session 200", "plain 200"),
		forgets: []string{"session", "ratelimit", "middleware"},
	},
	{
		name:  "certificate expired",
		place: behindProxy(redistest.TLS("no")),
		strike: func(_ *testing.T, p *place) {
			p.ahead.Store(int64(100 * 365 * 24 * time.Hour))
			p.proxy.Cut(false)
		},
		mend: func(_ *testing.T, p *place) { p.ahead.Store(0) },
		want: down, sees: "expired",
	},
	{
		name:   "clock goes back 10 minutes",
		place:  inProcess,
		strike: func(_ *testing.T, p *place) { p.mini.SetTime(time.Now().Add(-10 * time.Minute)) },
		mend:   func(_ *testing.T, p *place) { p.mini.SetTime(time.Now()) },
		want:   healthy,
	},
	{
		name:   "clock goes ahead 10 minutes",
		place:  inProcess,
		strike: func(_ *testing.T, p *place) { p.mini.SetTime(time.Now().Add(10 * time.Minute)) },
		mend:   func(_ *testing.T, p *place) { p.mini.SetTime(time.Now()) },
		want:   healthy,
	},
	{
		name:   "cluster down (slots served by nobody)",
		place:  oneNodeCluster,
		strike: command("cluster", "delslotsrange", 0, 16383), mend: command("cluster", "addslotsrange", 0, 16383),
		want: down, sees: "CLUSTERDOWN",
	},
}

// replace puts something else at every key. undo puts back what was at those of
// sessions and limiters; a cache has to help itself.
func replace(t *testing.T, p *place, kind string) {
	ctx := context.Background()
	keys, err := p.admin.Keys(ctx, "faults:*").Result()
	if err != nil || len(keys) < 5 {
		t.Errorf("found %d keys to replace, %v; want those of all packages", len(keys), err)
	}
	dumps := map[string]string{}
	for _, k := range keys {
		if !strings.HasPrefix(k, "faults:cache:") {
			dumps[k] = p.admin.Dump(ctx, k).Val()
		}
		typ := p.admin.Type(ctx, k).Val()
		switch {
		case kind == "list":
			p.do(t, "del", k)
			p.do(t, "rpush", k, "not what you expect")
		case typ == "hash":
			p.do(t, "hset", k, "m", "\x00\xffgarbage")
		default:
			p.do(t, "set", k, "\x00\xffgarbage")
		}
	}
	p.undo = func() {
		for k, dump := range dumps {
			if err := p.admin.RestoreReplace(ctx, k, time.Hour, dump).Err(); err != nil {
				t.Error(err)
			}
		}
	}
}

// figures are what a cell measured.
type figures struct {
	requests  int
	answers   map[string]int
	longest   time.Duration
	recovered time.Duration
}

func TestMatrix(t *testing.T) {
	var table strings.Builder
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { f.run(t, &table) })
	}
	if path := os.Getenv("FAULTS_TABLE"); path != "" {
		if err := os.WriteFile(path, []byte(table.String()), 0o600); err != nil {
			t.Error(err)
		}
	}
}

func (f *fault) run(t *testing.T, table *strings.Builder) {
	makePlace := f.place
	if makePlace == nil {
		makePlace = behindProxy()
	}
	p := makePlace(t)
	before := goleak.IgnoreCurrent()
	logged.take()
	said := new(texts)
	var clients []redis.UniversalClient
	tenants := newTenants(t, func() redis.UniversalClient {
		rdb := p.connect()
		clients = append(clients, rdb)
		return rdb
	}, said)

	cells := make([]figures, len(tenants))
	for _, x := range tenants { // while all is well, so that connections and scripts are warm
		err := eventually(5*time.Second, func() error {
			got := spin(x, 0, 1, 30*time.Millisecond, "")
			if more := extra(got.answers, healthy[x.name()]); len(more) > 0 {
				return fmt.Errorf("%s answers %v before the fault; want %q", x.name(), got.answers, healthy[x.name()])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if f.strike != nil {
		f.strike(t, p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var harm, load sync.WaitGroup
	if f.during != nil {
		harm.Go(func() { f.during(ctx, t, p) })
	}
	lasts := f.lasts
	if lasts == 0 {
		lasts = 300 * time.Millisecond
	}
	for i, x := range tenants {
		load.Go(func() { cells[i] = spin(x, 1000, workers, lasts, f.want[x.name()][0]) })
	}
	load.Wait()
	cancel()
	harm.Wait()
	if f.mend != nil {
		f.mend(t, p)
	}
	requests := 0
	for i, x := range tenants {
		requests += cells[i].requests
		f.judge(t, x, &cells[i])
	}
	ours, client, by := logged.take()
	// The middleware says once or twice for each request why it answers with an
	// error; nobody else says anything more than once.
	served := int(tenants[3].(*httpTenant).served.Load())
	if ours > 2*served+5 {
		t.Errorf("%d log lines for %d requests to the middleware; want at most two each: %v", ours, served, by)
	}
	if f.sees != "" && !said.contain(f.sees) {
		t.Errorf("no error says %q, so this was another fault: %s", f.sees, said)
	}
	for _, x := range tenants {
		x.close()
	}
	for _, rdb := range clients {
		rdb.Close()
	}
	// go-redis looks once a second whether a pool that could not connect can again,
	// and sees only then that it was closed.
	const dialer = "github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"
	const rig = "github.com/redporch/redporch/internal/redistest."
	if err := goleak.Find(before, goleak.IgnoreAnyFunction(dialer), goleak.IgnoreAnyFunction(rig+"(*link).requests"), goleak.IgnoreAnyFunction(rig+"(*link).replies"),
		goleak.IgnoreAnyFunction(rig+"(*Proxy).listen.func1"), goleak.IgnoreAnyFunction(rig+"startProcess.func1")); err != nil {
		t.Errorf("goroutines are left: %v", err)
	}
	fmt.Fprintf(table, "| %s |", f.name)
	for _, c := range cells {
		fmt.Fprintf(table, " %s |", c)
	}
	fmt.Fprintf(table, " %d + %d |\n", ours, client)
	t.Logf("%d requests, %d log lines of ours, %d of go-redis; said: %s", requests, ours, client, said)
}

// spin has workers make requests for a while, and for 3 s more at most until one
// is answered as must be seen: where faults come at random, a short while may pass
// without it.
func spin(x tenant, first, workers int, d time.Duration, must string) figures {
	var mu sync.Mutex
	sum := figures{answers: map[string]int{}}
	var running sync.WaitGroup
	end := time.Now().Add(d)
	goOn := func() bool {
		if time.Now().Before(end) {
			return true
		}
		mu.Lock()
		defer mu.Unlock()
		return must != "" && sum.answers[must] == 0 && time.Now().Before(end.Add(3*time.Second))
	}
	for w := range workers {
		running.Go(func() {
			for n := first + 1; goOn(); n++ {
				start := time.Now()
				got := x.request(w, n)
				took := time.Since(start)
				mu.Lock()
				sum.requests++
				for _, a := range got {
					sum.answers[a]++
				}
				sum.longest = max(sum.longest, took)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	running.Wait()
	return sum
}

// judge compares a cell's figures with what its package promises, and waits until
// it is well again.
func (f *fault) judge(t *testing.T, x tenant, c *figures) {
	name := x.name()
	want := f.want[name]
	strays := 0
	for _, a := range extra(c.answers, want) {
		if !slices.Contains(down[name], a) {
			t.Errorf("%s answered %v; want nothing but %q", name, c.answers, want)
		}
		strays += c.answers[a]
	}
	// A busy machine makes a call miss its deadline now and then.
	if strays > 4+c.requests/10 {
		t.Errorf("%s answered %v; want next to nothing but %q", name, c.answers, want)
	}
	if c.answers[want[0]] == 0 {
		t.Errorf("%s answered %v; want %q among them", name, c.answers, want[0])
	}
	if c.longest > longest[name] {
		t.Errorf("the longest request to %s took %v; want at most %v", name, c.longest, longest[name])
	}
	start := time.Now()
	well := healthy[name]
	forgets := slices.Contains(f.forgets, name)
	if forgets {
		well = append(slices.Clone(well), want...)
	}
	err := eventually(5*time.Second, func() error {
		got := map[string]int{}
		for _, a := range x.request(workers, 1) {
			got[a]++
		}
		if more := extra(got, well); len(more) > 0 {
			return fmt.Errorf("it answers %v", got)
		}
		return nil
	})
	c.recovered = time.Since(start)
	if err != nil {
		t.Errorf("%s has not recovered after 5 s: %v", name, err)
		return
	}
	if err := x.audit(!forgets); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// extra returns the answers that are not among those wanted.
func extra(got map[string]int, want []string) (more []string) {
	for _, a := range slices.Sorted(maps.Keys(got)) {
		if !slices.Contains(want, a) {
			more = append(more, a)
		}
	}
	return more
}

func (c figures) String() string {
	var parts []string
	for _, a := range slices.Sorted(maps.Keys(c.answers)) {
		parts = append(parts, fmt.Sprintf("%s ×%d", a, c.answers[a]))
	}
	return fmt.Sprintf("%s; %d / %d ms", strings.Join(parts, ", "), c.longest.Milliseconds(), c.recovered.Milliseconds())
}
