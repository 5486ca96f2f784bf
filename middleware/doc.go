// Package middleware is the HTTP side of redporch: sessions, rate limits and
// cached values for net/http handlers, and what goes around them.
//
//	h := middleware.Chain( // the first is outermost
//		middleware.Recover(middleware.RecoverConfig{}),
//		middleware.RequestID(middleware.RequestIDConfig{}),
//		middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes("10.0.0.0/8")}),
//		middleware.Observe(observer),
//		middleware.AccessLog(middleware.AccessLogConfig{}),
//		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
//		middleware.Sessions(sessions, "__Host-sid", middleware.SessionsConfig{}),
//	)(mux)
//
// Every middleware is a func(http.Handler) http.Handler, so each can be used
// alone and with any router that takes those.
//
// # Promises
//
//   - A session is loaded at most once, and only if a handler asks; it is saved
//     before the first byte of the response, whichever way that is written; an
//     unchanged one costs nothing and sends no cookie. See [Sessions].
//   - A denied request costs the handler nothing, and its client is told when to
//     come back. See [RateLimit].
//   - No header decides who the client is unless you have named the proxy that
//     writes it. See [ClientAddr].
//   - Response writers keep exactly the optional interfaces that net/http gave
//     them, so that streaming, Server-Sent Events, HTTP/2 and WebSocket upgrades go
//     on working, and what a mux matched is seen in Request.Pattern outside.
//   - Nothing secret is logged or observed: no token, key or query.
//
// # When Redis is down
//
// Requests go on, each within the deadlines of the cores. A session that can't be
// loaded is empty and marked ([session.Loaded]); a response that claims to have
// changed one that can't be saved becomes 503, unless [SessionsConfig.ServeUnsaved]
// is set. A limiter decides by its failure policy, and answers 503 where that is
// to deny.
//
// # Round trips to Redis
//
// Sessions: none for a request that does not use the session, one to load it,
// one more to save what changed. RateLimit: one, none when the client is denied
// again. Nothing else asks Redis.
//
// # Concurrency
//
// Middlewares are safe for concurrent use. A session belongs to one request and,
// like all gorilla sessions, to one goroutine at a time.
//
// # Mistakes
//
// A program that is put together wrongly (a nil store, contradicting options)
// panics when it starts. What can only be seen at run time is logged once, with a
// code that docs/warnings.md explains. [Check] looks at Redis itself.
package middleware
