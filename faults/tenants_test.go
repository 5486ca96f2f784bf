package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// timeout is every package's budget for one call to Redis. A request makes two
// or three.
const timeout = 500 * time.Millisecond

// workers make requests to one package at the same time.
const workers = 4

// A tenant uses one package the way an application does, and keeps the books by
// which it can tell afterwards what went wrong.
type tenant interface {
	name() string
	// request makes the n-th request of a worker and says how it was answered.
	request(worker, n int) []string
	// audit is called when Redis is well again. kept says that Redis lost nothing.
	audit(kept bool) error
	close()
}

// Answers, the same for all tenants.
var (
	healthy = answers{
		"session":    {"ok"},
		"ratelimit":  {"redis", "strict redis"},
		"cacheaside": {"invalidated", "cached", "loaded"},
		"middleware": {"session 200", "plain 200"},
	}
	down = answers{
		"session":    {"unavailable"},
		"ratelimit":  {"open", "strict closed"},
		"cacheaside": {"loaded", "queued"},
		"middleware": {"session 503", "plain 200"},
	}
)

// answers are those that a tenant may give; the first must be among them.
type answers map[string][]string

// and allows what others allow as well.
func (a answers) and(b answers) answers {
	both := answers{}
	for name := range a {
		both[name] = append(append([]string{}, a[name]...), b[name]...)
	}
	return both
}

// but replaces one tenant's.
func (a answers) but(name string, list ...string) answers {
	other := answers{}
	for n := range a {
		other[n] = a[n]
	}
	other[name] = list
	return other
}

func newTenants(t *testing.T, connect func() redis.UniversalClient, said *texts) []tenant {
	t.Helper()
	return []tenant{
		newSessionTenant(t, connect(), said),
		newLimitTenant(t, connect(), said),
		newCacheTenant(t, connect(), connect(), said),
		newHTTPTenant(t, connect()),
	}
}

// texts are the error texts that callers got.
type texts struct {
	mu sync.Mutex
	m  map[string]int
}

func (x *texts) note(err error) {
	if err == nil || x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.m == nil {
		x.m = map[string]int{}
	}
	x.m[err.Error()]++
}

func (x *texts) contain(s string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for text := range x.m {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

func (x *texts) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var b strings.Builder
	for text, n := range x.m {
		fmt.Fprintf(&b, "\n%6d× %s", n, text)
	}
	return b.String()
}

// counters are values that workers write into one session: each its own, which
// only grows.
type counters struct {
	tried, acked [workers + 1]atomic.Int64
}

// check compares what is stored with what was acknowledged and what was tried.
func (c *counters) check(values map[any]any) error {
	var errs []error
	if values["before"] != "the fault" {
		errs = append(errs, fmt.Errorf("the value from before the fault is %v", values["before"]))
	}
	for w := range c.tried {
		stored, _ := values["w"+strconv.Itoa(w)].(int)
		if tried, acked := c.tried[w].Load(), c.acked[w].Load(); int64(stored) < acked || int64(stored) > tried {
			errs = append(errs, fmt.Errorf("worker %d: stored is %d; want what was acknowledged last, %d, up to what was tried, %d", w, stored, acked, tried))
		}
	}
	return errors.Join(errs...)
}

// sessionTenant has all workers change one session.
type sessionTenant struct {
	store  *session.Store
	cookie *http.Cookie
	books  counters
	said   *texts
}

var secret = []byte("0123456789abcdefFEDCBA9876543210")

func newSessionTenant(t *testing.T, rdb redis.UniversalClient, said *texts) *sessionTenant {
	t.Helper()
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Timeout: timeout, Prefix: "faults:session:"})
	if err != nil {
		t.Fatal(err)
	}
	x := &sessionTenant{store: store, said: said}
	if err := eventually(5*time.Second, func() (err error) { x.cookie, err = signIn(store); return err }); err != nil {
		t.Fatal(err)
	}
	return x
}

// signIn makes a session and returns its cookie.
func signIn(store *session.Store) (*http.Cookie, error) {
	r := httptest.NewRequest("GET", "/", nil)
	s, err := store.New(r, "sid")
	if err != nil {
		return nil, err
	}
	s.Values["before"] = "the fault"
	rec := httptest.NewRecorder()
	if err := store.Save(r, rec, s); err != nil {
		return nil, err
	}
	return rec.Result().Cookies()[0], nil
}

func load(store *session.Store, cookie *http.Cookie) (*http.Request, *sessions.Session, error) {
	r := httptest.NewRequest("GET", "/", nil)
	r.AddCookie(cookie)
	s, err := store.New(r, cookie.Name)
	return r, s, err
}

func (x *sessionTenant) name() string { return "session" }

func (x *sessionTenant) request(worker, n int) []string {
	r, s, err := load(x.store, x.cookie)
	x.said.note(err)
	if err == nil && s.IsNew {
		return []string{"gone"}
	}
	s.Values["w"+strconv.Itoa(worker)] = n
	x.books.tried[worker].Store(int64(n))
	saveErr := x.store.Save(r, httptest.NewRecorder(), s)
	x.said.note(saveErr)
	switch {
	case saveErr == nil && s.IsNew: // it could not be loaded, and then it was not there
		return []string{"gone"}
	case saveErr == nil:
		x.books.acked[worker].Store(int64(n))
		if err != nil {
			return []string{"unavailable"}
		}
		return []string{"ok"}
	case errors.Is(saveErr, session.ErrSessionGone):
		return []string{"gone"}
	case errors.Is(saveErr, session.ErrUnavailable):
		return []string{"unavailable"}
	}
	return []string{"error"}
}

func (x *sessionTenant) audit(kept bool) error {
	_, s, err := load(x.store, x.cookie)
	switch {
	case err != nil:
		return err
	case !kept && !s.IsNew:
		return fmt.Errorf("a session that Redis had lost is back, with %v", s.Values)
	case !kept:
		return nil
	case s.IsNew:
		return errors.New("the session is gone")
	}
	return x.books.check(s.Values)
}

func (x *sessionTenant) close() { x.store.Close() }

// limitTenant has all workers charge one key that is far from its limit, with a
// limiter that fails open, and one with few units, with a limiter that fails
// closed.
type limitTenant struct {
	open, closed                    *ratelimit.Limiter
	asked, acked, admitted, refused atomic.Int64
	said                            *texts
}

const fewUnits = 100

func newLimitTenant(t *testing.T, rdb redis.UniversalClient, said *texts) *limitTenant {
	t.Helper()
	limiter := func(prefix string, f ratelimit.FailurePolicy, p ratelimit.Policy) *ratelimit.Limiter {
		l, err := ratelimit.New(rdb, ratelimit.Config{Timeout: timeout, OnUnavailable: f, Prefix: prefix, NoDenialCache: true}, p)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	x := &limitTenant{
		open:   limiter("faults:open:", ratelimit.FailOpen, ratelimit.FixedWindow("hour", 1e9, time.Hour)),
		closed: limiter("faults:closed:", ratelimit.FailClosed, ratelimit.SlidingLog("hour", fewUnits, time.Hour)),
		said:   said,
	}
	err := eventually(5*time.Second, func() error {
		if x.request(0, 0); x.acked.Load() == 0 {
			return errors.New("ratelimit: Redis did not decide before the fault")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *limitTenant) name() string { return "ratelimit" }

func (x *limitTenant) request(int, int) []string {
	x.asked.Add(1)
	var list []string
	r, err := x.open.Allow(context.Background(), "key")
	x.said.note(err)
	x.said.note(r.Err)
	switch {
	case err != nil && r.Allowed:
		list = append(list, "allowed with an error")
	case err != nil:
		list = append(list, "error")
	default:
		list = append(list, r.Source.String())
		if r.Source == ratelimit.SourceRedis && r.Allowed {
			x.acked.Add(1)
		} else if !r.Allowed {
			x.refused.Add(1)
		}
	}
	r, err = x.closed.Allow(context.Background(), "key")
	x.said.note(err)
	switch {
	case err != nil && r.Allowed, r.Source == ratelimit.SourceFailClosed && r.Allowed:
		list = append(list, "allowed with an error")
	case err != nil:
		list = append(list, "strict error")
	default:
		list = append(list, "strict "+r.Source.String())
		if r.Allowed {
			x.admitted.Add(1)
		}
	}
	return list
}

func (x *limitTenant) audit(kept bool) error {
	r, err := x.open.Peek(context.Background(), "key")
	if err != nil || r.Err != nil {
		return errors.Join(err, r.Err)
	}
	var errs []error
	used, asked, acked := r.Limit-r.Remaining, x.asked.Load(), x.acked.Load()
	if used > asked {
		errs = append(errs, fmt.Errorf("%d units were charged for %d calls", used, asked))
	}
	if kept && used < acked {
		errs = append(errs, fmt.Errorf("%d units are charged for %d calls that were told so", used, acked))
	}
	if n := x.admitted.Load(); kept && n > fewUnits {
		errs = append(errs, fmt.Errorf("%d calls were admitted by a limit of %d", n, fewUnits))
	}
	if n := x.refused.Load(); n > 0 {
		errs = append(errs, fmt.Errorf("%d calls were denied far from the limit, by a limiter that fails open", n))
	}
	return errors.Join(errs...)
}

func (x *limitTenant) close() {}

// cacheTenant reads and changes one row through two caches that stand for two
// processes.
type cacheTenant struct {
	here, there *cacheaside.Cache[string, int64]
	row         atomic.Int64 // the source
	promised    atomic.Int64 // the newest row for which Invalidate returned nil
	done        atomic.Int64 // the newest row for which Invalidate returned at all
	stale       atomic.Int64
	writing     sync.Mutex
	said        *texts
}

func newCacheTenant(t *testing.T, rdb, other redis.UniversalClient, said *texts) *cacheTenant {
	t.Helper()
	x := &cacheTenant{said: said}
	cache := func(rdb redis.UniversalClient) *cacheaside.Cache[string, int64] {
		c, err := cacheaside.New(rdb, "row", func(context.Context, string) (int64, error) { return x.row.Load(), nil },
			cacheaside.Config{TTL: time.Hour, L1Entries: -1, Timeout: timeout, Prefix: "faults:cache:",
				Hooks: cacheaside.Hooks{Error: func(_ string, err error) { said.note(err) }}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	x.here, x.there = cache(rdb), cache(other)
	for _, c := range []*cacheaside.Cache[string, int64]{x.here, x.there} {
		if _, err := c.Get(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func (x *cacheTenant) name() string { return "cacheaside" }

func (x *cacheTenant) request(worker, n int) []string {
	ctx := context.Background()
	if worker == 0 && n%3 == 0 {
		x.writing.Lock()
		defer x.writing.Unlock()
		v := x.row.Add(1)
		err := x.here.Invalidate(ctx, "key")
		x.said.note(err)
		x.done.Store(v)
		if err == nil {
			x.promised.Store(v)
			return []string{"invalidated"}
		}
		if errors.Is(err, cacheaside.ErrInvalidationQueued) {
			return []string{"queued"}
		}
		return []string{"error"}
	}
	// Nobody may see less than was promised before; the process that wrote may
	// not even where Redis could not be told.
	c, floor := x.here, x.done.Load()
	if worker%2 == 1 {
		c, floor = x.there, x.promised.Load()
	}
	e, err := c.GetEntry(ctx, "key")
	switch {
	case err != nil:
		x.said.note(err)
		return []string{"error"}
	case e.Value < floor:
		x.stale.Add(1)
		return []string{"stale"}
	case e.Source == cacheaside.SourceLoader:
		return []string{"loaded"}
	}
	return []string{"cached"}
}

func (x *cacheTenant) audit(bool) error {
	var errs []error
	if n := x.stale.Load(); n > 0 {
		errs = append(errs, fmt.Errorf("%d reads returned less than had been promised", n))
	}
	// What could not be invalidated is, by and by.
	var v int64
	err := eventually(4*time.Second, func() (err error) {
		if n := x.here.Stats().Queued; n > 0 {
			return fmt.Errorf("%d invalidations are still queued", n)
		}
		if v, err = x.there.Get(context.Background(), "key"); err == nil && v != x.row.Load() {
			err = fmt.Errorf("another process reads %d; the row is %d", v, x.row.Load())
		}
		return err
	})
	return errors.Join(append(errs, err)...)
}

func (x *cacheTenant) close() { x.here.Close(); x.there.Close() }

// httpTenant is the whole chain.
type httpTenant struct {
	handler http.Handler
	store   *session.Store
	cookie  *http.Cookie
	books   counters
	served  atomic.Int64
}

func newHTTPTenant(t *testing.T, rdb redis.UniversalClient) *httpTenant {
	t.Helper()
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Timeout: timeout, Prefix: "faults:http:session:"})
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: timeout, Prefix: "faults:http:limit:"}, ratelimit.SlidingWindow("hour", 1e6, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	x := &httpTenant{store: store}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /session/{worker}/{n}", func(w http.ResponseWriter, r *http.Request) {
		s, err := middleware.LoadSession(r)
		if err == nil && s.IsNew {
			http.Error(w, "sign in", http.StatusUnauthorized)
			return
		}
		n, _ := strconv.Atoi(r.PathValue("n"))
		s.Values["w"+r.PathValue("worker")] = n
		io.WriteString(w, "counted")
	})
	mux.HandleFunc("GET /plain", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	x.handler = middleware.Chain(
		middleware.Recover(middleware.RecoverConfig{}),
		middleware.RequestID(middleware.RequestIDConfig{}),
		middleware.ClientAddr(middleware.ClientAddrConfig{}),
		middleware.AccessLog(middleware.AccessLogConfig{Logger: slog.New(slog.DiscardHandler)}),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(store, "sid", middleware.SessionsConfig{}),
	)(mux)
	if err := eventually(5*time.Second, func() (err error) { x.cookie, err = signIn(store); return err }); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *httpTenant) name() string { return "middleware" }

func (x *httpTenant) request(worker, n int) []string {
	x.served.Add(1)
	rec := httptest.NewRecorder()
	if n%3 == 0 {
		x.handler.ServeHTTP(rec, httptest.NewRequest("GET", "/plain", nil))
		return []string{fmt.Sprint("plain ", rec.Code)}
	}
	x.books.tried[worker].Store(int64(n))
	r := httptest.NewRequest("POST", fmt.Sprintf("/session/%d/%d", worker, n), nil)
	r.AddCookie(x.cookie)
	x.handler.ServeHTTP(rec, r)
	if rec.Code == http.StatusOK {
		x.books.acked[worker].Store(int64(n))
	}
	return []string{fmt.Sprint("session ", rec.Code)}
}

func (x *httpTenant) audit(kept bool) error {
	_, s, err := load(x.store, x.cookie)
	switch {
	case err != nil:
		return err
	case !kept && !s.IsNew:
		return errors.New("a session that Redis had lost is back")
	case kept && s.IsNew:
		return errors.New("the session is gone")
	case !kept:
		return nil
	}
	return x.books.check(s.Values)
}

func (x *httpTenant) close() { x.store.Close() }

// eventually returns the last error of f, which is tried for d.
func eventually(d time.Duration, f func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
