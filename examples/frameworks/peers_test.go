package frameworks_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	chimw "github.com/go-chi/chi/v5/middleware"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// sessions is a session middleware with a way to set and read one value.
type sessions struct {
	name string
	wrap func(http.Handler) http.Handler
	set  func(r *http.Request, v string)
	get  func(r *http.Request) string
}

func redporch(t *testing.T) sessions {
	_, rdb := redistest.Mini(t)
	store, err := session.New(rdb, session.Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return sessions{
		name: "redporch",
		wrap: middleware.Sessions(store, "sid", middleware.SessionsConfig{}),
		set:  func(r *http.Request, v string) { middleware.Session(r).Values["k"] = v },
		get:  func(r *http.Request) string { v, _ := middleware.Session(r).Values["k"].(string); return v },
	}
}

func alexedwards(*testing.T) sessions {
	m := scs.New()
	m.Cookie.Secure = true
	return sessions{
		name: "scs",
		wrap: m.LoadAndSave,
		set:  func(r *http.Request, v string) { m.Put(r.Context(), "k", v) },
		get:  func(r *http.Request) string { return m.GetString(r.Context(), "k") },
	}
}

// TestWriterMatrixBesidesScs runs the same handlers behind redporch and scs
// v2.9.0, and pins where they differ. When a new version of scs passes more rows,
// this test fails and the table in docs/middleware.md wants an update.
func TestWriterMatrixBesidesScs(t *testing.T) {
	probe := func(proto string, s sessions, h func(w http.ResponseWriter, r *http.Request)) (srv *httptest.Server, client *http.Client) {
		mux := http.NewServeMux()
		mux.HandleFunc("/do", h)
		mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, s.get(r)) })
		mux.HandleFunc("/set", func(_ http.ResponseWriter, r *http.Request) { s.set(r, "before") })
		srv = httptest.NewUnstartedServer(s.wrap(mux))
		srv.EnableHTTP2 = proto == "HTTP/2.0"
		srv.StartTLS()
		t.Cleanup(srv.Close)
		client = srv.Client()
		client.Jar, _ = cookiejar.New(nil)
		return srv, client
	}
	fetch := func(client *http.Client, url string) (*http.Response, string) {
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res, string(b)
	}
	cookieAfter := func(begin func(w http.ResponseWriter)) func(string, sessions) bool {
		return func(proto string, s sessions) bool {
			srv, client := probe(proto, s, func(w http.ResponseWriter, r *http.Request) {
				s.set(r, "v")
				begin(w)
			})
			res, _ := fetch(client, srv.URL+"/do")
			_, v := fetch(client, srv.URL+"/get")
			return len(res.Cookies()) == 1 && v == "v"
		}
	}
	keeps := func(has func(w http.ResponseWriter) bool) func(string, sessions) bool {
		return func(proto string, s sessions) bool {
			var bare, wrapped bool
			inner := s.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { wrapped = has(w) }))
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				bare = has(w)
				inner.ServeHTTP(w, r)
			}))
			srv.EnableHTTP2 = proto == "HTTP/2.0"
			srv.StartTLS()
			defer srv.Close()
			fetch(srv.Client(), srv.URL)
			return bare == wrapped
		}
	}
	for _, row := range []struct {
		name  string
		check func(proto string, s sessions) bool
		scs   map[string]bool
	}{
		{"cookie after return", cookieAfter(func(http.ResponseWriter) {}), both(true)},
		{"cookie after Write", cookieAfter(func(w http.ResponseWriter) { _, _ = w.Write([]byte("x")) }), both(true)},
		{"cookie after ResponseController.Flush", cookieAfter(func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }), both(false)},
		{"cookie after Flusher.Flush", cookieAfter(func(w http.ResponseWriter) {
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
		}), both(false)},
		{"no cookie in a 103", func(proto string, s sessions) bool {
			srv, client := probe(proto, s, func(w http.ResponseWriter, r *http.Request) {
				s.set(r, "v")
				w.WriteHeader(http.StatusEarlyHints)
			})
			leaked := false
			ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
				leaked = leaked || len(h["Set-Cookie"]) > 0
				return nil
			}})
			req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL+"/do", nil)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			return !leaked && len(res.Cookies()) == 1
		}, both(false)},
		{"change after the first byte is kept", func(proto string, s sessions) bool {
			srv, client := probe(proto, s, func(w http.ResponseWriter, r *http.Request) {
				_, _ = w.Write([]byte("x"))
				s.set(r, "late")
			})
			fetch(client, srv.URL+"/set")
			fetch(client, srv.URL+"/do")
			_, v := fetch(client, srv.URL+"/get")
			return v == "late"
		}, both(false)},
		{"no Vary where the session was not used", func(proto string, s sessions) bool {
			srv, client := probe(proto, s, func(http.ResponseWriter, *http.Request) {})
			res, _ := fetch(client, srv.URL+"/do")
			return res.Header.Get("Vary") == ""
		}, both(false)},
		{"io.ReaderFrom as net/http has it", keeps(func(w http.ResponseWriter) bool { _, ok := w.(io.ReaderFrom); return ok }),
			map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true}},
		{"io.StringWriter as net/http has it", keeps(func(w http.ResponseWriter) bool { _, ok := w.(io.StringWriter); return ok }), both(false)},
		{"http.Hijacker as net/http has it", keeps(func(w http.ResponseWriter) bool { _, ok := w.(http.Hijacker); return ok }),
			map[string]bool{"HTTP/1.1": true, "HTTP/2.0": false}},
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(fmt.Sprint(row.name, " ", proto), func(t *testing.T) {
				if !row.check(proto, redporch(t)) {
					t.Errorf("redporch fails: %s", row.name)
				}
				if got := row.check(proto, alexedwards(t)); got != row.scs[proto] {
					t.Errorf("scs passes = %v; want %v: %s", got, row.scs[proto], row.name)
				}
			})
		}
	}
}

func both(v bool) map[string]bool { return map[string]bool{"HTTP/1.1": v, "HTTP/2.0": v} }

// TestClientAddrBesidesChi: where chi's ClientIPFromXFF knows the client, ours
// agrees; what chi takes for garbage, an address with a port, ours reads.
func TestClientAddrBesidesChi(t *testing.T) {
	for _, c := range []struct {
		peer, xff string
		chi       bool // chi finds the same
	}{
		{"203.0.113.9:1", "6.6.6.6", true},
		{"10.0.0.1:1", "203.0.113.9", true},
		{"10.0.0.1:1", "6.6.6.6, 203.0.113.9, 10.0.0.2", true},
		{"10.0.0.1:1", "6.6.6.6, ::ffff:203.0.113.9", true},
		{"10.0.0.1:1", "2001:db8::1", true},
		{"10.0.0.1:1", "6.6.6.6, 203.0.113.9:4711", false},
		{"10.0.0.1:1", "6.6.6.6, [2001:db8::1]:4711", false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		r.Header.Set("X-Forwarded-For", c.xff)
		var ours, theirs, through netip.Addr
		last := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ours, theirs = middleware.ClientAddrOf(r), chimw.GetClientIPAddr(r.Context())
		})
		chimw.ClientIPFromXFF("10.0.0.0/8")(middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes("10.0.0.0/8")})(last)).
			ServeHTTP(httptest.NewRecorder(), r)
		if (ours == theirs) != c.chi || !ours.IsValid() {
			t.Errorf("peer %s, X-Forwarded-For %q: redporch %v, chi %v; want equal = %v", c.peer, c.xff, ours, theirs, c.chi)
		}
		chimw.ClientIPFromXFF("10.0.0.0/8")(middleware.ClientAddr(middleware.ClientAddrConfig{
			Resolve: func(r *http.Request) netip.Addr { return chimw.GetClientIPAddr(r.Context()) },
		})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { through = middleware.ClientAddrOf(r) }))).
			ServeHTTP(httptest.NewRecorder(), r)
		if through != theirs {
			t.Errorf("through Resolve = %v; want chi's %v", through, theirs)
		}
	}
}
