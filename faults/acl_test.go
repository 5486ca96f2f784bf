package faults_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// uses are what each package does with Redis, all of it, and the keys and
// channels it may touch.
var uses = []struct {
	name, patterns string
	work           func(rdb redis.UniversalClient) error
}{
	{"session", "~redporch:session:*", useSessions},
	{"session with Replicas", "~redporch:session:*", useReplicas},
	{"session with redisstore", "~redporch:session:* ~session:*", useRedisstore},
	{"ratelimit", "~redporch:limit:*", useLimits},
	{"cacheaside", "~redporch:cache:* &redporch:cache:*", func(rdb redis.UniversalClient) error { return useCache(rdb, false) }},
	{"cacheaside with Tracking", "~redporch:cache:* &redporch:cache:*", func(rdb redis.UniversalClient) error { return useCache(rdb, true) }},
	{"middleware.Check", "~redporch:check:* &redporch:check:*", func(rdb redis.UniversalClient) error {
		_, err := middleware.Check(context.Background(), rdb, middleware.CheckConfig{})
		return err
	}},
}

// besides is what a short run may not see: the bus' pings.
var besides = map[string][]string{"cacheaside": {"ping"}, "cacheaside with Tracking": {"ping"}}

// byPeople are commands for what a person runs, such as counting all sessions: the lines
// don't have them. SCAN tells the names of others' keys, and CONFIG GET passwords.
var byPeople = []string{"scan", "config|get"}

// forCluster is what a cluster client needs besides, whatever it is used for.
var forCluster = []string{"cluster|slots", "command"}

// steps joins the errors of steps, each with its place in the order.
type steps struct {
	n    int
	errs []error
}

func (s *steps) ok(err error) {
	s.n++
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("step %d: %w", s.n, err))
	}
}

func (s *steps) err() error { return errors.Join(s.errs...) }

func useSessions(rdb redis.UniversalClient) error {
	var s steps
	ctx := context.Background()
	for _, limit := range []int{0, 2} {
		store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, MaxPerUser: limit, TouchEvery: time.Millisecond})
		if err != nil {
			return err
		}
		var last string
		for range 3 {
			cookie, err := signIn(store)
			s.ok(err)
			if err != nil {
				continue
			}
			time.Sleep(5 * time.Millisecond)
			r, x, err := load(store, cookie)
			s.ok(err)
			x.Values["a"], x.Values["list"] = 1, []any{"flash"}
			s.ok(store.Save(r, httptest.NewRecorder(), x))
			delete(x.Values, "a")
			s.ok(store.Save(r, httptest.NewRecorder(), x))
			s.ok(store.Touch(r, x))
			s.ok(store.Reload(r, x))
			s.ok(store.Bind(x, "user"))
			s.ok(store.Regenerate(httptest.NewRecorder(), r, x))
			last = session.ID(x)
		}
		_, err = store.Sessions(ctx, "user")
		s.ok(err)
		_, err = store.Revoke(ctx, "user", last)
		s.ok(err)
		_, err = store.RevokeUser(ctx, "user")
		s.ok(err)
		cookie, err := signIn(store)
		s.ok(err)
		if err == nil {
			r, x, err := load(store, cookie)
			s.ok(err)
			s.ok(store.Destroy(httptest.NewRecorder(), r, x))
		}
		_, err = signIn(store)
		s.ok(err)
		for _, err := range store.All(ctx) {
			s.ok(err)
		}
		_, err = store.Len(ctx)
		s.ok(err)
		_, err = store.Clear(ctx)
		s.ok(err)
		store.Close()
	}
	return s.err()
}

// useReplicas does what useSessions does, and then what waits for replicas, of
// which there are none.
func useReplicas(rdb redis.UniversalClient) error {
	s := steps{errs: []error{useSessions(rdb)}}
	store, err := session.New(rdb, session.Config{Replicas: 1, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer store.Close()
	r := httptest.NewRequest("GET", "/", nil)
	x, err := store.New(r, "sid")
	s.ok(err)
	x.Values["a"] = 1
	for _, err := range []error{store.Save(r, httptest.NewRecorder(), x), store.Destroy(httptest.NewRecorder(), r, x)} {
		if !errors.Is(err, session.ErrNotReplicated) {
			s.ok(fmt.Errorf("%w; want ErrNotReplicated", err))
		}
	}
	return s.err()
}

func useRedisstore(rdb redis.UniversalClient) error {
	var s steps
	s.ok(useSessions(rdb))
	store, err := session.NewRedisStore(context.Background(), rdb)
	if err != nil {
		return err
	}
	defer store.Close()
	for range 2 {
		var cookies []*http.Cookie
		for range 3 {
			cookie, err := signIn(store)
			s.ok(err)
			if err == nil {
				cookies = append(cookies, cookie)
			}
		}
		for i, cookie := range cookies {
			if i == 2 {
				store.KeepLayoutUntil(time.Now().Add(-time.Hour)) // moves it
			}
			r, x, err := load(store, cookie)
			s.ok(err)
			x.Values["a"] = 1
			s.ok(store.Save(r, httptest.NewRecorder(), x))
			s.ok(store.Regenerate(httptest.NewRecorder(), r, x))
			s.ok(store.Destroy(httptest.NewRecorder(), r, x))
		}
	}
	return s.err()
}

func useLimits(rdb redis.UniversalClient) error {
	var s steps
	ctx := context.Background()
	for _, p := range []ratelimit.Policy{
		ratelimit.FixedWindow("p", 5, time.Minute), ratelimit.SlidingLog("p", 5, time.Minute), ratelimit.SlidingWindow("p", 5, time.Minute),
		ratelimit.TokenBucket("p", 5, time.Minute, 5), ratelimit.Concurrency("p", 5, time.Minute),
	} {
		l, err := ratelimit.New(rdb, ratelimit.Config{NoDenialCache: true, Timeout: timeout}, p)
		if err != nil {
			return err
		}
		key := "key of " + p.String()
		asked := func(r ratelimit.Result, err error) { s.ok(err); s.ok(r.Err) }
		for range 7 {
			asked(l.Allow(ctx, key))
		}
		asked(l.Peek(ctx, key))
		s.ok(l.Reset(ctx, key))
		asked(l.AllowUpTo(ctx, key, 3))
		s.ok(l.Refund(ctx, key, 1))
		for _, settle := range []func(*ratelimit.Reservation) error{
			func(r *ratelimit.Reservation) error { return r.Cancel(ctx) },
			func(r *ratelimit.Reservation) error { return r.Commit(ctx, 1) },
			func(r *ratelimit.Reservation) error {
				_, err := r.Renew(ctx)
				return errors.Join(err, r.Commit(ctx, 3))
			},
		} {
			r, err := l.Reserve(ctx, key, 2)
			s.ok(err)
			s.ok(r.Err)
			s.ok(settle(r))
			s.ok(l.Reset(ctx, key))
		}
		s.ok(l.Ban(ctx, key, time.Minute))
		asked(l.Allow(ctx, key))
		s.ok(l.Unban(ctx, key))
	}
	return s.err()
}

func useCache(rdb redis.UniversalClient, tracking bool) error {
	var s steps
	var mu sync.Mutex
	failed := func(op string, err error) {
		mu.Lock()
		defer mu.Unlock()
		s.ok(fmt.Errorf("%s: %w", op, err))
	}
	ctx := context.Background()
	var caches []*cacheaside.Cache[string, int]
	for range 2 {
		c, err := cacheaside.New(rdb, "n", func(context.Context, string) (int, error) { return 1, nil }, cacheaside.Config{
			TTL: 20 * time.Millisecond, StaleWhileRevalidate: time.Second, Tracking: tracking, Timeout: timeout, EarlyRefresh: -1,
			Hooks: cacheaside.Hooks{Error: failed},
		}, cacheaside.Funcs[string, int]{Tags: func(string) []string { return []string{"tag"} }, Version: func(v int) uint64 { return uint64(v) }})
		if err != nil {
			return err
		}
		defer c.Close()
		caches = append(caches, c)
	}
	do := func(err error) { mu.Lock(); defer mu.Unlock(); s.ok(err) }
	for range 3 {
		for _, c := range caches {
			_, err := c.Get(ctx, "a")
			do(err)
			_, err = c.GetMany(ctx, []string{"a", "b", "c"})
			do(err)
			_, err = c.Refresh(ctx, "a")
			do(err)
			_, _, err = c.Peek(ctx, "a")
			do(err)
			do(c.Set(ctx, "b", 2))
			do(c.Update(ctx, func(context.Context) error {
				return c.Update(ctx, func(context.Context) error { return nil }, "b", "c") // fences overlap
			}, "a", "b"))
			do(c.Invalidate(ctx, "c"))
			do(c.InvalidateTags(ctx, "tag"))
		}
		time.Sleep(25 * time.Millisecond) // so that values are refreshed
	}
	do(caches[0].Clear(ctx))
	// A first level that is used proves that announcements are heard.
	do(eventually(3*time.Second, func() error {
		for range 3 {
			if _, err := caches[0].Get(ctx, "a"); err != nil {
				return err
			}
		}
		if caches[0].Stats().L1Hits == 0 {
			return errors.New("the first level is not used")
		}
		return nil
	}))
	mu.Lock()
	defer mu.Unlock()
	return s.err()
}

// quiet keeps a client from saying who it is, which 7.0 knows nothing of.
func quiet(o *redis.Options) {
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// monitor returns the commands that a server executes while f runs, those of
// scripts among them, with their arguments.
func monitor(t *testing.T, s *redistest.Server, f func()) (commands [][]string) {
	t.Helper()
	conn, err := net.Dial(s.Network(), s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "MONITOR\r\n")
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || line != "+OK\r\n" {
		t.Fatal(line, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			line, err := in.ReadString('\n')
			if err != nil || strings.Contains(line, `"end of the recording"`) {
				return
			}
			var args []string
			for _, quoted := range monitored.FindAllString(line, -1) {
				arg, err := strconv.Unquote(quoted)
				if err != nil {
					arg = quoted
				}
				args = append(args, arg)
			}
			if len(args) > 0 {
				commands = append(commands, args)
			}
		}
	}()
	f()
	s.Client().Do(context.Background(), "echo", "end of the recording")
	<-done
	return commands
}

var monitored = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// setup are commands that set up a connection and need no permission, or are not
// redporch's.
var setup = []string{"hello", "auth", "client|setinfo", "client|maint_notifications", "select"}

// containers are commands whose subcommands are permitted one by one.
var containers = []string{"client", "cluster", "config", "script", "object"}

func nameOf(args []string) string {
	name := strings.ToLower(args[0])
	if slices.Contains(containers, name) && len(args) > 1 {
		name += "|" + strings.ToLower(args[1])
	}
	return name
}

func line(user, patterns string, commands []string) string {
	parts := []string{"ACL SETUSER", user, "reset on >PASSWORD resetchannels"}
	if patterns != "" {
		parts = append(parts, patterns)
	}
	parts = append(parts, "-@all")
	for _, c := range commands {
		parts = append(parts, "+"+c)
	}
	return strings.Join(parts, " ")
}

// setUser carries out a line.
func setUser(t *testing.T, rdb redis.UniversalClient, line string) {
	t.Helper()
	var args []any
	for _, arg := range strings.Fields(line) {
		args = append(args, strings.ReplaceAll(arg, "PASSWORD", "secret"))
	}
	if err := rdb.Do(context.Background(), args...).Err(); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}

// denials returns what a server has refused by its ACL.
func denials(t *testing.T, rdb redis.UniversalClient) (objects []string) {
	t.Helper()
	log, err := rdb.(interface {
		ACLLog(context.Context, int64) *redis.ACLLogCmd
	}).ACLLog(context.Background(), 100).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range log {
		objects = append(objects, entry.Object)
	}
	return objects
}

// TestACL finds out which commands each package sends, and shows that exactly
// these are enough, with the keys and channels of the package alone. docs/acl.md
// has the lines, and none that is out of date.
func TestACL(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	cl := redistest.StartCluster(t, 1, false)
	node := cl.Masters[0].Client(quiet)
	everything := map[string]map[string]bool{} // commands and their arguments
	permitted := map[string]bool{}
	for _, use := range uses {
		t.Run(use.name, func(t *testing.T) {
			s := redistest.Start(t)
			admin := s.Client(quiet)
			used := map[string]bool{}
			for _, args := range monitor(t, s, func() {
				rdb := s.Client(quiet)
				if err := use.work(rdb); err != nil {
					t.Errorf("with all rights: %v", err)
				}
				rdb.Close()
			}) {
				name := nameOf(args)
				if slices.Contains(setup, name) || name == "echo" {
					continue
				}
				used[name] = true
				if everything[name] == nil {
					everything[name] = map[string]bool{}
				}
				for _, arg := range args[1:] {
					if len(arg) < 20 {
						everything[name][strings.ToUpper(arg)] = true
					}
				}
			}
			// Administrative commands are not monitored, but refused.
			user := "app"
			admin.FlushAll(t.Context())
			setUser(t, admin, line(user, use.patterns, slices.Sorted(maps.Keys(used))))
			as := func(o *redis.Options) { quiet(o); o.Username, o.Password = user, "secret" }
			for range 5 {
				admin.Do(t.Context(), "acl", "log", "reset")
				_ = use.work(s.Client(as))
				more := denials(t, admin)
				if len(more) == 0 {
					break
				}
				for _, object := range more {
					used[object] = true
					everything[object] = map[string]bool{}
				}
				setUser(t, admin, line(user, use.patterns, slices.Sorted(maps.Keys(used))))
			}
			for _, name := range besides[use.name] {
				used[name] = true
			}
			var extra []string
			for _, name := range byPeople {
				if used[name] {
					extra = append(extra, "+"+name)
					delete(used, name)
				}
			}
			commands := slices.Sorted(maps.Keys(used))
			for _, name := range commands {
				permitted[name] = true
			}

			admin.FlushAll(t.Context())
			setUser(t, admin, "ACL SETUSER app on >leaked ~* +@all") // as it may have been before
			setUser(t, admin, line(user, use.patterns, commands))
			admin.Set(t.Context(), "somebody else's", "x", 0)
			for _, must := range [][]any{
				{"get", "somebody else's"}, {"set", "somebody else's", 1}, {"scan", 0}, {"keys", "*"}, {"randomkey"},
				{"config", "get", "requirepass"}, {"config", "set", "maxmemory", "0"}, {"acl", "list"}, {"flushall"}, {"monitor"}, {"debug", "sleep", 0},
				{"eval", "return redis.call('get', KEYS[1])", 1, "somebody else's"}, {"publish", "somebody else's", 1}, {"client", "list"},
			} {
				if err := s.Client(as).Do(t.Context(), must...).Err(); err == nil || err == redis.Nil {
					t.Errorf("%v = %v; want it refused", must, err)
				}
			}
			before := func(o *redis.Options) { quiet(o); o.Username, o.Password = user, "leaked" }
			if err := s.Client(before).Ping(t.Context()).Err(); !redis.IsAuthError(err) {
				t.Errorf("with the password of before: %v; want it refused", err)
			}
			admin.Del(t.Context(), "somebody else's")
			admin.Do(t.Context(), "acl", "log", "reset")
			if len(extra) > 0 {
				setUser(t, admin, "ACL SETUSER app "+strings.Join(extra, " "))
			}
			if err := use.work(s.Client(as)); err != nil {
				t.Errorf("with these commands alone: %v", err)
			}
			if more := denials(t, admin); len(more) > 0 {
				t.Errorf("refused: %q; want nothing", more)
			}
			if err := s.Client(as).Get(t.Context(), "somebody else's").Err(); err == nil || err == redis.Nil {
				t.Errorf("reading another key: %v; want it refused", err)
			}
			// Slowed down, some work is left out, such as a refresh that comes too late.
			name, _, _ := strings.Cut(use.name, " ")
			want := line(strings.ToLower(strings.ReplaceAll(name, ".", "")), use.patterns, commands)
			documented := false
			for l := range strings.Lines(string(text)) {
				head, _, _ := strings.Cut(want, "-@all")
				documented = documented || strings.TrimSpace(l) == want || raceDetector && strings.HasPrefix(l, head) && subset(want, l)
			}
			if !documented {
				t.Errorf("docs/acl.md lacks the line for %s:\n%s", use.name, want)
			}

			// On a cluster it is the same and what any client needs.
			node.FlushAll(t.Context())
			node.Do(t.Context(), "acl", "log", "reset")
			setUser(t, node, line(user, use.patterns, append(slices.Clone(forCluster), commands...))+" "+strings.Join(extra, " "))
			rdb := cl.Client(func(o *redis.ClusterOptions) {
				o.DisableIdentity, o.Username, o.Password = true, user, "secret"
				o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
			})
			if err := use.work(rdb); err != nil {
				t.Errorf("on a cluster: %v", err)
			}
			if more := denials(t, node); len(more) > 0 {
				t.Errorf("a cluster refused %q; want nothing", more)
			}
		})
	}
	t.Run("what the source can send is permitted", func(t *testing.T) {
		found := 0
		for _, dir := range []string{"../session", "../ratelimit", "../cacheaside"} {
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				name := file.Name()
				if strings.HasSuffix(name, "_test.go") || !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".lua") {
					continue
				}
				text, err := os.ReadFile(dir + "/" + name)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range sends.FindAllStringSubmatch(string(text), -1) {
					command := strings.ToLower(cmp.Or(m[1], m[2], m[3]))
					found++
					if command == "del" {
						command = "unlink" // in scripts for redisstore's layout, see there
					}
					if !permitted[command] && !slices.Contains(byPeople, command) && !slices.Contains(setup, command) {
						t.Errorf("%s/%s can send %s, which no line permits", dir, name, command)
					}
				}
			}
		}
		if found < 50 {
			t.Errorf("only %d places that send commands were found", found)
		}
	})
	t.Run("Redis 6.2 has it all", func(t *testing.T) {
		rdb := redistest.Start(t).Client(func(o *redis.Options) { o.Protocol = 3 })
		for _, name := range slices.Sorted(maps.Keys(everything)) {
			reply, err := rdb.Do(t.Context(), "command", "docs", name).Result()
			if err != nil {
				t.Fatal(err)
			}
			docs, _ := reply.(map[any]any)[name].(map[any]any)
			since, _ := docs["since"].(string)
			if since == "" || tooNew(since) {
				t.Errorf("%s is there since %q; want 6.2 or before", name, since)
			}
			for token, since := range tokens(docs["arguments"]) {
				if everything[name][token] && tooNew(since) {
					t.Errorf("%s with %s is there since %s; want 6.2 or before", name, token, since)
				}
			}
		}
		if len(everything) < 20 {
			t.Errorf("only %d commands were looked at", len(everything))
		}
	})
}

// sends finds what the source can send: commands that are built, called in scripts, and
// sent by a client's methods.
var sends = regexp.MustCompile(`redis\.New\w+Cmd\([^"\n]*"(\w+)"|redis\.p?call\('(\w+)'|\b(?:ps|rdb|master)\.(Ping|Subscribe|Scan)\(`)

// TestDefaultOff: whoever has no password gets nothing once the page's first lines are
// carried out.
func TestDefaultOff(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	s := redistest.Start(t)
	admin := s.Client(quiet)
	done := 0
	for l := range strings.Lines(string(text)) {
		if strings.HasPrefix(l, "ACL SETUSER admin ") || strings.HasPrefix(l, "ACL SETUSER default ") {
			setUser(t, admin, l)
			done++
		}
	}
	if done != 2 {
		t.Fatalf("docs/acl.md has %d of the two lines", done)
	}
	if err := s.Client(quiet).Get(t.Context(), "k").Err(); !redis.IsAuthError(err) {
		t.Errorf("without a password: %v; want it refused", err)
	}
	as := func(o *redis.Options) { quiet(o); o.Username, o.Password = "admin", "secret" }
	if err := s.Client(as).ConfigGet(t.Context(), "maxmemory").Err(); err != nil {
		t.Errorf("as admin: %v", err)
	}
}

// subset reports whether all words of a are in b.
func subset(a, b string) bool {
	words := strings.Fields(b)
	return !slices.ContainsFunc(strings.Fields(a), func(w string) bool { return !slices.Contains(words, w) })
}

// tokens returns the literal words among a command's arguments, and since when.
func tokens(arguments any) map[string]string {
	found := map[string]string{}
	list, _ := arguments.([]any)
	for _, a := range list {
		arg, _ := a.(map[any]any)
		token, _ := arg["token"].(string)
		since, _ := arg["since"].(string)
		if token != "" && since != "" {
			found[token] = since
		}
		for t, s := range tokens(arg["arguments"]) {
			if since != "" {
				s = since
			}
			found[t] = s
		}
	}
	return found
}

func tooNew(since string) bool {
	major, rest, _ := strings.Cut(since, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a > 6 || a == 6 && b > 2
}

// TestLogoutWithoutMemory: a server that is out of memory refuses what needs
// memory, and carries out what frees some. Nobody stays signed in for that.
func TestLogoutWithoutMemory(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rdb := s.Client()
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}})
	if err != nil {
		t.Fatal(err)
	}
	var cookies []*http.Cookie
	for range 2 {
		cookie, err := signIn(store)
		if err != nil {
			t.Fatal(err)
		}
		r, x, _ := load(store, cookie)
		if err := errors.Join(store.Bind(x, "user"), store.Save(r, httptest.NewRecorder(), x)); err != nil {
			t.Fatal(err)
		}
		cookies = append(cookies, cookie)
	}
	rdb.ConfigSet(t.Context(), "maxmemory", "1")
	if _, err := signIn(store); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("signing in: %v; want ErrUnavailable", err)
	}
	r, x, err := load(store, cookies[0])
	if err != nil || x.IsNew {
		t.Fatalf("loading: %v; want the session", err)
	}
	if err := store.Destroy(httptest.NewRecorder(), r, x); err != nil {
		t.Errorf("signing out: %v; want nil", err)
	}
	if n, err := store.RevokeUser(t.Context(), "user"); err != nil || n != 1 {
		t.Errorf("signing out everywhere: %d, %v; want 1, nil", n, err)
	}
	for i, cookie := range cookies {
		if _, x, err := load(store, cookie); err != nil || !x.IsNew {
			t.Errorf("session %d is there (%v); want it gone", i, err)
		}
	}
}
