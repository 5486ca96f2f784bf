// Package redporchprom is a Prometheus collector for sessions, limits and caches of
// redporch. It is a module of its own, so that programs without Prometheus don't get
// its dependencies.
//
//	import redporchprom "github.com/redporch/redporch/prometheus"
//
//	c := redporchprom.New(redporchprom.Config{})
//	prometheus.MustRegister(c)
//	sessions, err := session.New(rdb, session.Config{Hooks: c.SessionHooks()})
//	limiter, err := ratelimit.New(rdb, ratelimit.Config{Hooks: c.RateLimitHooks("api")}, policy)
//	users, err := cacheaside.New(rdb, "user", loadUser, cacheaside.Config{TTL: time.Minute, Hooks: c.CacheHooks("user")})
//	c.AddSessions("web", sessions.Stats)
//	c.AddCache("user", users.Stats)
//	h := middleware.Chain(middleware.Observe(c.Observer()), …)(mux)
//
// # Metrics
//
// Every name begins with redporch_ and every label takes few values, all of them
// from the program: no key, token, address or id is among them.
//
//	redporch_http_request_duration_seconds       histogram  http_request_method, url_scheme, http_route, http_response_status_code, outcome
//	redporch_http_streams_total                  counter    http_request_method, url_scheme, http_route, http_response_status_code, outcome
//	redporch_http_decisions_total                counter    policy, outcome
//	redporch_session_commits_total               counter    outcome
//	redporch_session_operation_duration_seconds  histogram  operation, outcome
//	redporch_session_events_total                counter    event
//	redporch_session_loads_total                 counter    store, outcome
//	redporch_ratelimit_decisions_total           counter    limiter, policy, outcome, source
//	redporch_ratelimit_duration_seconds          histogram  limiter, source
//	redporch_ratelimit_redis_available           gauge      limiter
//	redporch_cache_requests_total                counter    cache, outcome
//	redporch_cache_load_duration_seconds         histogram  cache, outcome
//	redporch_cache_fills_total                   counter    cache, outcome
//	redporch_cache_invalidations_total           counter    cache, outcome
//	redporch_cache_errors_total                  counter    cache, operation
//	redporch_cache_l1_entries                    gauge      cache
//	redporch_cache_invalidations_queued          gauge      cache
//
// http_route is the path of the route, without method and host, and empty where none is
// known. Streams of events and connections that were taken over are not in the durations:
// they last as long as somebody listens.
//
// The board in deploy/grafana shows them.
//
// # Failures and concurrency
//
// Nothing here fails a request, and nothing asks Redis. All methods are safe for
// concurrent use.
package redporchprom
