package middleware_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// protocols are what net/http speaks by itself. Both go over TLS, so that
// Secure cookies work.
var protocols = []string{"HTTP/1.1", "HTTP/2.0"}

// site is a test server and a browser.
type site struct {
	*httptest.Server
	client *http.Client
}

func newSite(t testing.TB, proto string, h http.Handler) *site {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = proto == "HTTP/2.0"
	srv.Config.ErrorLog = nil
	srv.Config.ErrorLog = quiet()
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return &site{Server: srv, client: newBrowser(t, srv)}
}

func newBrowser(t testing.TB, srv *httptest.Server) *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := srv.Client().Transport.(*http.Transport).Clone()
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// reply is a response with its body read.
type reply struct {
	*http.Response
	body string
	err  error
}

func (s *site) do(t testing.TB, method, path string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := s.client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return reply{res, string(body), err}
}

func (s *site) get(t testing.TB, path string, header ...string) reply {
	t.Helper()
	r := s.do(t, "GET", path, header...)
	if r.err != nil {
		t.Fatalf("GET %s: %v", path, r.err)
	}
	return r
}

func (s *site) tlsConfig() *tls.Config {
	return s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
}

// cookieNames returns the names of the cookies that a response sets.
func (r reply) cookieNames() (names []string) {
	for _, c := range r.Cookies() {
		names = append(names, c.Name)
	}
	return names
}

var sessionKey = []byte("0123456789abcdefFEDCBA9876543210")

func newStore(t testing.TB, rdb redis.UniversalClient) *session.Store {
	t.Helper()
	st, err := session.New(rdb, session.Config{Keys: [][]byte{sessionKey}, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// withSession serves h at /do, and at /get what the session holds under "k".
func withSession(st *session.Store, cfg middleware.SessionsConfig, h http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/do", h)
	mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		k, _ := middleware.Session(r).Values["k"].(string)
		_, _ = io.WriteString(w, k)
	})
	mux.HandleFunc("/set", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["k"] = r.FormValue("k")
	})
	if cfg.Logger == nil {
		cfg.Logger = discard()
	}
	return middleware.Sessions(st, "sid", cfg)(mux)
}
