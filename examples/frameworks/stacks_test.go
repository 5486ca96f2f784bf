package frameworks_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimw "github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/csrf"
	"github.com/gorilla/mux"
	"github.com/labstack/echo/v5"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"github.com/redporch/redporch/examples/frameworks"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// TestStacks: behind each middleware that copies the request or wraps the writer, and
// in front of each router, from outside, the route is known, the session is kept and the
// answer arrives; on HTTP/1.1 and HTTP/2.
func TestStacks(t *testing.T) {
	hello := func(w http.ResponseWriter, r *http.Request) {
		s := middleware.Session(r)
		n, _ := s.Values["n"].(int)
		s.Values["n"] = n + 1
		_, _ = io.WriteString(w, "hello")
	}
	routers := map[string]struct {
		h     http.Handler
		route string
	}{
		"net/http":    {stdRouter(hello), "GET /item/{id}"},
		"chi":         {chiRouter(hello), "/item/{id}"},
		"chi mounted": {chiMounted(hello), "/item/{id}"},
		"gorilla/mux": {gorillaRouter(hello), "/item/{id}"},
		"echo":        {echoRouter(hello), "/item/:id"},
		"gin":         {ginRouter(hello), "/item/:id"},
	}
	between := map[string]middleware.Middleware{
		"nothing":        nil,
		"otelhttp":       otelhttp.NewMiddleware("test"),
		"MaxBytes":       func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, 1000) },
		"TimeoutHandler": func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Minute, "late") },
		"chi's Timeout":  chimw.Timeout(time.Minute),
		"chi's Compress": chimw.Compress(5),
		"csrf":           csrf.Protect([]byte("0123456789abcdef0123456789abcdef"), csrf.Secure(true)),
		"CrossOrigin":    http.NewCrossOriginProtection().Handler,
		"StripPrefix":    func(next http.Handler) http.Handler { return http.StripPrefix("", next) },
	}
	_, rdb := redistest.Mini(t)
	store, err := session.New(rdb, session.Config{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for name, router := range routers {
		for copies, mw := range between {
			for _, sessionsOutside := range []bool{true, false} {
				for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
					log := new(lines)
					logger := slog.New(slog.NewJSONHandler(log, nil))
					observed := make(chan string, 1)
					sessions := middleware.Sessions(store, "sid", middleware.SessionsConfig{Logger: logger})
					inner := []middleware.Middleware{mw, sessions}
					if sessionsOutside {
						inner = []middleware.Middleware{sessions, mw}
					}
					srv := httptest.NewUnstartedServer(middleware.Chain(append([]middleware.Middleware{
						middleware.Recover(middleware.RecoverConfig{Logger: logger}),
						middleware.Observe(func(ev middleware.Event) {
							if ev.Op == "request" {
								observed <- ev.Name
							}
						}),
						middleware.AccessLog(middleware.AccessLogConfig{Logger: logger}),
					}, inner...)...)(router.h))
					srv.EnableHTTP2 = proto == "HTTP/2.0"
					srv.StartTLS()
					res, err := srv.Client().Get(srv.URL + "/item/7")
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(res.Body)
					res.Body.Close()
					cookies := 0
					for _, c := range res.Cookies() {
						if c.Name == "sid" {
							cookies++
						}
					}
					if err != nil || res.StatusCode != 200 || string(b) != "hello" || cookies != 1 || res.Proto != proto {
						t.Errorf("%s, %s, Sessions outside %t: %s %d %q %v, session cookies %d; want 200 hello and one", name, copies, sessionsOutside, res.Proto, res.StatusCode, b, err, cookies)
					}
					if got := <-observed; got != router.route {
						t.Errorf("%s, %s, Sessions outside %t, %s: route %q; want %q", name, copies, sessionsOutside, proto, got, router.route)
					}
					if rec := log.request(t, 1); rec["route"] != router.route {
						t.Errorf("%s, %s, Sessions outside %t, %s: logged %v; want %q", name, copies, sessionsOutside, proto, rec, router.route)
					}
					srv.Close()
				}
			}
		}
	}
}

func stdRouter(hello http.HandlerFunc) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /item/{id}", hello)
	return middleware.Routed(m)
}

func chiRouter(hello http.HandlerFunc) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.Routed)
	r.Get("/item/{id}", hello)
	return r
}

func chiMounted(hello http.HandlerFunc) http.Handler {
	items := chi.NewRouter()
	items.Get("/{id}", hello)
	r := chi.NewRouter()
	r.Use(chimw.RealIP, middleware.Routed)
	r.Mount("/item", items)
	return r
}

func gorillaRouter(hello http.HandlerFunc) http.Handler {
	r := mux.NewRouter()
	r.Use(frameworks.GorillaRoute)
	r.HandleFunc("/item/{id}", hello)
	return r
}

func echoRouter(hello http.HandlerFunc) http.Handler {
	e := echo.New()
	e.Use(frameworks.EchoRoute)
	e.GET("/item/:id", echo.WrapHandler(hello))
	return e
}

func ginRouter(hello http.HandlerFunc) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.Use(frameworks.GinRoute)
	e.GET("/item/:id", gin.WrapF(hello))
	return e
}
