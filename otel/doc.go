// Package redporchotel tells OpenTelemetry what redporch does: metrics of
// sessions, limits and caches, spans of requests and of loaders. It is a module of
// its own, so that programs without OpenTelemetry don't get its dependencies.
//
//	import redporchotel "github.com/redporch/redporch/otel"
//
//	t, err := redporchotel.New(redporchotel.Config{})
//	sessions, err := session.New(rdb, session.Config{Hooks: t.SessionHooks()})
//	limiter, err := ratelimit.New(rdb, ratelimit.Config{Hooks: t.RateLimitHooks("api")}, policy)
//	users, err := cacheaside.New(rdb, "user", redporchotel.Load(t, "user", loadUser),
//		cacheaside.Config{TTL: time.Minute, Hooks: t.CacheHooks("user")})
//	err = t.RegisterSessions("web", sessions.Stats)
//	err = t.RegisterCache("user", users.Stats)
//	h := middleware.Chain(t.Middleware(), …)(mux)
//
// # Metrics
//
// Durations are in seconds. Every name begins with redporch. and every attribute
// takes few values, all of them from the program: no key, token, address or id is
// among them, nor the text of an error.
//
//	redporch.http.request.duration       histogram  http.request.method, url.scheme, http.route, http.response.status_code, outcome
//	redporch.http.streams                counter    http.request.method, url.scheme, http.route, http.response.status_code, outcome
//	redporch.http.decisions              counter    policy, outcome
//	redporch.session.commits             counter    outcome
//	redporch.session.operation.duration  histogram  operation, outcome
//	redporch.session.events              counter    event
//	redporch.session.loads               counter    store, outcome
//	redporch.ratelimit.decisions         counter    limiter, policy, outcome, source
//	redporch.ratelimit.duration          histogram  limiter, source
//	redporch.ratelimit.redis.available   gauge      limiter
//	redporch.cache.requests              counter    cache, outcome
//	redporch.cache.load.duration         histogram  cache, outcome
//	redporch.cache.fills                 counter    cache, outcome
//	redporch.cache.invalidations         counter    cache, outcome
//	redporch.cache.errors                counter    cache, operation
//	redporch.cache.l1.entries            gauge      cache
//	redporch.cache.invalidations.queued  gauge      cache
//
// http.route is the path of the route, without method and host, and left out where none is
// known, so that it joins with what otelhttp records. The duration has a name of its own,
// since its bounds and attributes are not those of http.server.request.duration, which
// otelhttp may record beside it. Streams of events and connections that were taken over are
// not in it: they last as long as somebody listens. Where a request's span is sampled, the
// SDK keeps its trace as an exemplar of the duration.
//
// An exporter for Prometheus turns them into the names of redporch's own
// collector, so the board in deploy/grafana shows either.
//
// # Spans
//
// A span that is started here has http.request.method, url.scheme, url.path (unless
// [Config.NoPath] is set), http.route, http.response.status_code and, for a panic or a status
// from 500 on, error.type.
//
// [Telemetry.Middleware] uses the span that it finds in the request's context, such
// as that of otelhttp, or starts one. Decisions of limiters and commits of sessions
// become events of it, and what happens to sessions too. [Load] gives each call of a
// loader a span. Commands to Redis are spans of redisotel, which instruments the
// client; instrument it before you pass it to a constructor.
//
// # Failures and concurrency
//
// Nothing here fails a request, and nothing asks Redis. All methods are safe for
// concurrent use.
package redporchotel
