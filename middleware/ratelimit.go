package middleware

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/redporch/redporch/ratelimit"
)

// RateLimitConfig tells RateLimit what a request costs and how to say no. The
// zero value charges one unit, denies with 429 and a problem document, and tells
// clients about their limits by the fields of the newest draft.
type RateLimitConfig struct {
	// Cost returns what a request costs. Nil means 1; a request that costs 0 is
	// let through if a unit is left, and charged nothing. A negative cost is an
	// error of the program, answered with 500.
	Cost func(r *http.Request) int64

	// Tier returns the limiter for a request, such as one made with
	// Limiter.With for paying customers. Nil, or a nil limiter, means the one
	// given to RateLimit.
	Tier func(r *http.Request) *ratelimit.Limiter

	// Skip, when set, lets requests through unseen for which it returns true.
	Skip func(r *http.Request) bool

	// ChargePreflights charges CORS preflights (OPTIONS with Origin and
	// Access-Control-Request-Method) like other requests. Otherwise they pass: a browser
	// sends them by itself, before the request that is charged, and takes a denied one
	// for a refusal. They pass as long as something inside answers them as preflights;
	// once a handler has answered one in another way, all are charged, so that nobody
	// reaches handlers for nothing.
	ChargePreflights bool

	// NoKey says what to do with a request that the KeyFunc has no key for. The
	// zero value uses the client's address instead.
	NoKey NoKey

	// Shadow charges and reports, but never denies and writes no headers: a way
	// to try out a limit. See ratelimit.Policy.Shadow for a single policy.
	Shadow bool

	// Headers says in which fields to tell clients about their limits. Zero means
	// Draft11.
	Headers Dialect

	// QuotaUnit is told as the "qu" parameter of Draft11, for limits that don't
	// count requests, such as "content-bytes". Empty leaves it out. It is not for
	// Concurrency policies, whose unit is "concurrent-requests".
	QuotaUnit string

	// QuotaUnits are QuotaUnit of single policies, by their names.
	QuotaUnits map[string]string

	// PartitionSecret, when set, adds the "pk" parameter of Draft11: 12 bytes of
	// an HMAC-SHA-256 of the key, by which clients tell accounts apart without
	// learning what they are. At least 16 bytes.
	PartitionSecret []byte

	// RefundIf gives the units back when it returns true of how the handler has ended:
	// of a status such as 304 or 500 and up, or of what the handler has said by
	// [SetOutcome]. It must be safe for concurrent use.
	RefundIf func(o Outcome) bool

	// Also are further limits, of other keys, that are charged together with the first:
	// a request that one of them denies takes units of none, but for a moment. They share
	// all that is configured here but Cost and Tier. Put first what is most likely to deny.
	Also []Limit

	// BusyRetryAfter is the Retry-After of a denial by a Concurrency policy, where nobody
	// knows when a unit will be free: a guess, rounded up to seconds. Zero means 1 second.
	BusyRetryAfter time.Duration

	// Denied, when set, answers denied requests in place of the problem document.
	// The headers are set already, Retry-After among them; it writes status and
	// body. Decisions tells why.
	Denied http.Handler

	// Error, when set, answers when the limiter returned an error: a mistake, such
	// as a negative cost, or a request that has ended. Redis being down is none, the
	// limiter's own failure policy decides then. Nil means 500, 503 if the request's
	// own deadline was over, or 499 for a client that has gone.
	Error func(w http.ResponseWriter, r *http.Request, err error)

	// Logger gets warnings and errors. Nil means slog.Default().
	Logger *slog.Logger
}

// Limit is one of several limits of a RateLimit, see [RateLimitConfig.Also].
type Limit struct {
	Limiter *ratelimit.Limiter
	Key     KeyFunc
	// Cost and Tier are those of RateLimitConfig.
	Cost func(r *http.Request) int64
	Tier func(r *http.Request) *ratelimit.Limiter
}

// Outcome is how the handler behind a RateLimit has ended.
type Outcome struct {
	// Status is the status that went out, whatever happened afterwards. If none did it is
	// what net/http sends then: 200, or 500 after a panic. It is 499 if the client had gone
	// before, or the handler dropped the connection by http.ErrAbortHandler: hanging up is
	// no failure of the server.
	Status int
	// Gone reports that the client had gone before a status went out.
	Gone bool
	// Panicked reports that the handler panicked, with another value than
	// http.ErrAbortHandler.
	Panicked bool
	// Said is what the handler has said by SetOutcome, or empty.
	Said string
}

// SetOutcome has a handler say how it ended, for [RateLimitConfig.RefundIf], where the
// status does not tell: a login that shows its form again may answer a wrong password with
// 200 and a right one with 303. Of several calls the last counts.
func SetOutcome(r *http.Request, said string) {
	if v := visitOf(r); v != nil {
		v.mu.Lock()
		v.said = said
		v.mu.Unlock()
	}
}

// NoKey says what happens to requests without a key.
type NoKey uint8

const (
	// NoKeyClientIP uses the key of ClientIP. Requests whose client has no known
	// address share one key then, which is warned about.
	NoKeyClientIP NoKey = iota
	// NoKeySkip lets the request through, uncounted.
	NoKeySkip
	// NoKeyDeny answers 400.
	NoKeyDeny
)

// Decision is what a RateLimit has decided for a request.
type Decision struct {
	// Result is the limiter's result.
	Result ratelimit.Result
	// Shadow reports that the decision was not enforced, see RateLimitConfig.
	Shadow bool
	// Err is non-nil if the limiter could not decide.
	Err error

	limiter *ratelimit.Limiter
	key     string
}

func (d *Decision) outcome() string {
	switch {
	case d.Err != nil:
		return "error"
	case d.Result.Banned && !d.Shadow:
		return "banned"
	case !d.Result.Allowed && d.Shadow:
		return "shadow"
	case !d.Result.Allowed:
		return "denied"
	}
	for i := range d.Result.Policies {
		if p := &d.Result.Policies[i]; p.Shadow && !p.Allowed {
			return "shadow"
		}
	}
	return "allowed"
}

// source is empty for the usual one.
func (d *Decision) source() string {
	if d.Err != nil || d.Result.Source == ratelimit.SourceRedis {
		return ""
	}
	return d.Result.Source.String()
}

// tightest returns the decision to report of several: the denial if there is
// one, otherwise the one with the least left.
func tightest(ds []Decision) (d Decision, ok bool) {
	for i := range ds {
		a, b := &ds[i].Result, &d.Result
		if !ok || a.Allowed != b.Allowed && !a.Allowed || a.Allowed == b.Allowed && a.Remaining < b.Remaining {
			d, ok = ds[i], true
		}
	}
	return d, ok
}

// Decisions returns what the RateLimits in front of a handler have decided for
// r, outermost first.
func Decisions(r *http.Request) []Decision {
	v := visitOf(r)
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.decisions)
}

// RateLimit asks l for each request, on the account that key names, and answers
// those that are denied:
//
//	429  the limit is reached; Retry-After says when to come back, in seconds
//	     rounded up, unless the request costs more than can ever be admitted
//	503  Redis is down and the failure policy is to deny
//
// with a problem document (RFC 9457), or plain text for clients that accept text
// but no JSON. What could not be decided is answered as well, in plain text or, to
// a client that has gone, not at all:
//
//	500  the limiter was used wrongly, or what Redis holds is not a limiter's
//	503  the request's own deadline was over
//	499  the client has gone meanwhile
//	400  there is no key, and RateLimitConfig.NoKey is to deny
//
// All of these carry Cache-Control: no-store. Admitted requests and those denied
// with 429 get the fields of [RateLimitConfig.Headers]. Where limiters are nested,
// each adds its policies to the lists of Draft11; of single values the tightest is
// kept.
//
// The fields are written before the handler runs, and no writer is wrapped
// unless RefundIf is set. RateLimit panics if l or key is nil or cfg contradicts
// itself.
//
// Limits of kind Concurrency are held while the handler runs: their lease is renewed
// until it returns or panics, or its client has gone. A renewal that fails is logged.
func RateLimit(l *ratelimit.Limiter, key KeyFunc, cfg RateLimitConfig) Middleware {
	if err := cfg.check(l, key); err != nil {
		panic(err)
	}
	rl := &rateLimiter{
		cfg: cfg, limiter: l, key: key,
		fields: fieldWriter{dialect: cfg.Headers},
		seed:   maphash.MakeSeed(),
	}
	rl.limits = append([]Limit{{l, key, cfg.Cost, cfg.Tier}}, cfg.Also...)
	return func(next http.Handler) http.Handler {
		l := newLayer(kindRateLimit, next, cfg.Logger, nil)
		l.serve = func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
			rl.serve(v, w, r, next, l.ahead)
		}
		return l
	}
}

func (cfg *RateLimitConfig) check(l *ratelimit.Limiter, key KeyFunc) error {
	var errs []error
	if l == nil {
		errs = append(errs, errors.New("middleware: RateLimit without a limiter; make one with ratelimit.New"))
	}
	if key == nil {
		errs = append(errs, errors.New("middleware: RateLimit without a KeyFunc; use ClientIP()"))
	}
	for _, also := range cfg.Also {
		if also.Limiter == nil || also.Key == nil {
			errs = append(errs, errors.New("middleware: RateLimitConfig.Also has a Limit without a limiter or a KeyFunc"))
		}
	}
	if cfg.BusyRetryAfter < 0 {
		errs = append(errs, errors.New("middleware: RateLimitConfig.BusyRetryAfter is negative"))
	}
	for _, unit := range cfg.QuotaUnits {
		if _, err := httpsfv.Marshal(httpsfv.NewItem(unit)); err != nil {
			errs = append(errs, errors.New("middleware: RateLimitConfig.QuotaUnits has other characters than printable ASCII"))
		}
	}
	if cfg.Headers == 0 {
		cfg.Headers = Draft11
	}
	if cfg.Headers&Draft7 != 0 && cfg.Headers&Draft11 != 0 {
		errs = append(errs, errors.New("middleware: Draft7 and Draft11 define the field RateLimit differently; use one of them"))
	}
	if n := len(cfg.PartitionSecret); n > 0 && n < 16 {
		errs = append(errs, errors.New("middleware: RateLimitConfig.PartitionSecret is shorter than 16 bytes"))
	}
	if _, err := httpsfv.Marshal(httpsfv.NewItem(cfg.QuotaUnit)); err != nil {
		errs = append(errs, errors.New("middleware: RateLimitConfig.QuotaUnit has other characters than printable ASCII"))
	}
	if known := Draft11 | Draft7 | Draft6 | XRateLimit | XRateLimitUnix | NoHeaders; cfg.Headers&^known != 0 {
		errs = append(errs, errors.New("middleware: RateLimitConfig.Headers has an unknown dialect"))
	}
	if cfg.NoKey > NoKeyDeny {
		errs = append(errs, errors.New("middleware: RateLimitConfig.NoKey is unknown"))
	}
	return errors.Join(errs...)
}

type rateLimiter struct {
	cfg     RateLimitConfig
	limiter *ratelimit.Limiter
	key     KeyFunc
	limits  []Limit // the one of limiter and key first
	fields  fieldWriter

	// What has been seen of keys, to notice that there is only one.
	seed    maphash.Seed
	first   atomic.Pointer[seenKey]
	strange atomic.Int32
	judged  atomic.Bool

	answered atomic.Bool // a preflight, by a handler that takes it for a request
}

// preflight reports whether r is a CORS preflight.
func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) > 0 && len(r.Header["Access-Control-Request-Method"]) > 0
}

// preflightAnswer reports whether a response is that of something that knows CORS: it
// allows, or says that the answer depends on who asks.
func preflightAnswer(h http.Header) bool {
	if len(h["Access-Control-Allow-Origin"]) > 0 {
		return true
	}
	for _, line := range h["Vary"] {
		if strings.Contains(line, "Origin") || strings.Contains(line, "Access-Control-Request-") {
			return true
		}
	}
	return false
}

func (rl *rateLimiter) serve(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler, ahead func(*visit, *http.Request)) {
	if rl.cfg.Skip != nil && rl.cfg.Skip(r) {
		next.ServeHTTP(w, r)
		return
	}
	if preflight(r) && !rl.cfg.ChargePreflights && !rl.answered.Load() {
		next.ServeHTTP(w, r)
		if !preflightAnswer(w.Header()) {
			rl.answered.Store(true)
		}
		return
	}
	if len(rl.limits) > 1 {
		rl.serveAll(v, w, r, next)
		return
	}
	l, key, cost, proceed := rl.account(w, r, &rl.limits[0])
	if !proceed {
		return
	}
	if key == "" {
		next.ServeHTTP(w, r)
		return
	}
	rl.watch(r, key)
	if ahead != nil && !l.Denied(key, cost) {
		ahead(v, r)
		defer v.dropLoading() // unless somebody took it
	}
	d := Decision{Shadow: rl.cfg.Shadow, limiter: l, key: key}
	var taken *ratelimit.Reservation
	var err error
	if cost != 0 && (rl.cfg.RefundIf != nil || l.Holds()) {
		// Units of a Concurrency policy are held while the handler runs, and a
		// refund gives back these units and no others.
		taken, err = l.Reserve(r.Context(), key, cost)
		d.Result = taken.Result
	} else {
		d.Result, err = l.AllowN(r.Context(), key, cost)
	}
	d.Err = err
	rl.record(v, &d)

	if err != nil {
		rl.failed(w, r, err)
		return
	}
	if !rl.cfg.Shadow {
		rl.writeFields(w.Header(), &d)
		if !d.Result.Allowed {
			rl.deny(w, r, &d)
			return
		}
	}
	if taken == nil || !d.Result.Allowed {
		next.ServeHTTP(w, r)
		return
	}
	rl.run(v, w, r, next, held{taken, l, cost})
}

// maxKey is the length of a key, in bytes, from which on its digest stands for it.
const maxKey = 256

// account returns what limit charges r to. The key is empty if the limit is to be left
// out; proceed is false if the request was answered.
func (rl *rateLimiter) account(w http.ResponseWriter, r *http.Request, limit *Limit) (l *ratelimit.Limiter, key string, cost int64, proceed bool) {
	if key = limit.Key(r); key == "" {
		switch rl.cfg.NoKey {
		case NoKeySkip:
			return nil, "", 0, true
		case NoKeyDeny:
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, "the request does not say on whose account it goes", http.StatusBadRequest)
			return nil, "", 0, false
		}
		if key = clientIPKey(r); key == "" {
			warn(rl.cfg.Logger, WarnClientAddrUnknown, "",
				"the client's address is not known, so all such requests share one limit; "+
					"behind a Unix socket set ClientAddrConfig.TrustUnixSocket and Trusted")
			key = "ip:unknown"
		}
	}
	if len(key) > maxKey { // which a client has chosen; nothing keeps more of it than this
		sum := sha256.Sum256([]byte(key))
		key = "sha256:" + string(hex.AppendEncode(nil, sum[:]))
	}
	l = limit.Limiter
	if limit.Tier != nil {
		if tier := limit.Tier(r); tier != nil {
			l = tier
		}
	}
	cost = 1
	if limit.Cost != nil {
		cost = limit.Cost(r)
	}
	return l, key, cost, true
}

// held is what a request has taken of one limit.
type held struct {
	taken   *ratelimit.Reservation
	limiter *ratelimit.Limiter
	cost    int64
}

// serveAll charges several limits: all, or what was taken is given back.
func (rl *rateLimiter) serveAll(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
	all := make([]Decision, 0, len(rl.limits))
	holds := make([]held, 0, len(rl.limits))
	costs := make([]int64, 0, len(rl.limits))
	for i := range rl.limits {
		l, key, cost, proceed := rl.account(w, r, &rl.limits[i])
		if !proceed {
			return
		}
		if key == "" {
			continue
		}
		if i == 0 {
			rl.watch(r, key)
		}
		d := Decision{Shadow: rl.cfg.Shadow, limiter: l, key: key}
		if !rl.cfg.Shadow && l.Denied(key, cost) { // it costs nothing, and the others neither
			all, costs = append(all[:0], d), append(costs[:0], cost)
			break
		}
		all, costs = append(all, d), append(costs, cost)
	}
	giveBack := func() {
		for _, h := range holds {
			rl.settle(r.Context(), h, true)
		}
	}
	done := false
	defer func() {
		if !done {
			giveBack() // something panicked
		}
	}()
	for i := range all {
		d := &all[i]
		var err error
		if costs[i] == 0 {
			d.Result, err = d.limiter.Peek(r.Context(), d.key)
		} else {
			var taken *ratelimit.Reservation
			taken, err = d.limiter.Reserve(r.Context(), d.key, costs[i])
			if d.Result = taken.Result; err == nil && d.Result.Allowed {
				holds = append(holds, held{taken, d.limiter, costs[i]})
			}
		}
		d.Err = err
		if err != nil || !d.Result.Allowed && !rl.cfg.Shadow {
			done = true
			giveBack()
			rl.record(v, d)
			if err != nil {
				rl.failed(w, r, err)
				return
			}
			rl.writeFields(w.Header(), d)
			rl.deny(w, r, d)
			return
		}
	}
	for i := range all {
		rl.record(v, &all[i])
		if !rl.cfg.Shadow {
			rl.writeFields(w.Header(), &all[i])
		}
	}
	done = true
	rl.run(v, w, r, next, holds...)
}

// run has next serve the request, holds what it has taken meanwhile, and settles.
func (rl *rateLimiter) run(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler, holds ...held) {
	renewals := make([]*renewal, 0, len(holds))
	for _, h := range holds {
		if h.limiter.Holds() {
			renewals = append(renewals, rl.renew(r, h))
		}
	}
	var t *writer
	if rl.cfg.RefundIf != nil {
		t = v.track(w)
		w = t.out
	}
	returned := false
	defer func() {
		for _, re := range renewals {
			re.stop()
		}
		refund := false
		var p any
		if rl.cfg.RefundIf != nil {
			if !returned {
				p = recover()
			}
			refund = rl.cfg.RefundIf(rl.outcome(v, t, returned, p))
		}
		for _, h := range holds {
			rl.settle(r.Context(), h, refund)
		}
		if p != nil {
			panic(p)
		}
	}()
	next.ServeHTTP(w, r)
	returned = true
}

// outcome tells how a handler has ended, which has panicked with p unless it returned.
func (rl *rateLimiter) outcome(v *visit, t *writer, returned bool, p any) Outcome {
	o := Outcome{Status: t.code(), Panicked: !returned && p != http.ErrAbortHandler}
	if t.sent {
		o.Gone = t.goneBefore
	} else {
		o.Gone = errors.Is(v.Err(), context.Canceled)
	}
	switch {
	case o.Gone, !t.sent && !returned && !o.Panicked:
		o.Status = statusClientClosed
	case !t.sent && !returned:
		o.Status = http.StatusInternalServerError
	}
	v.mu.Lock()
	o.Said = v.said
	v.mu.Unlock()
	return o
}

// renewal prolongs a lease while a handler runs.
type renewal struct {
	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func (re *renewal) stop() {
	re.mu.Lock()
	defer re.mu.Unlock()
	re.ended = true
	re.timer.Stop()
}

// renew has the lease of h renewed each third of its length.
func (rl *rateLimiter) renew(r *http.Request, h held) *renewal {
	every := time.Duration(math.MaxInt64)
	for _, p := range h.limiter.Policies() {
		if p.Holds() {
			every = min(every, p.Window()/3)
		}
	}
	re := new(renewal)
	ctx := r.Context()
	re.mu.Lock()
	defer re.mu.Unlock()
	re.timer = time.AfterFunc(every, func() {
		if ctx.Err() != nil {
			return // nobody waits for the handler; its units come back when the lease ends
		}
		kept, err := h.taken.Renew(context.WithoutCancel(ctx))
		re.mu.Lock()
		defer re.mu.Unlock()
		if re.ended {
			return
		}
		switch {
		case err != nil: // there is time for another try
			loggerOr(rl.cfg.Logger).LogAttrs(ctx, slog.LevelWarn, "a lease could not be renewed", slog.String("error", err.Error()))
		case !kept:
			loggerOr(rl.cfg.Logger).LogAttrs(ctx, slog.LevelWarn, "a lease has ended while its handler runs, so that more may run than the limit says")
			return
		}
		re.timer.Reset(every)
	})
	return re
}

// settle ends what is held and gives back what is to be given back, also if the
// client has gone.
func (rl *rateLimiter) settle(ctx context.Context, h held, refund bool) {
	cost := h.cost
	if refund {
		cost = 0
	}
	if err := h.taken.Commit(ctx, cost); err != nil {
		loggerOr(rl.cfg.Logger).LogAttrs(ctx, slog.LevelWarn, "units could not be given back", slog.String("error", err.Error()))
	}
}

// record keeps the decision for those further in and out, and notices a second
// charge.
func (rl *rateLimiter) record(v *visit, d *Decision) {
	v.mu.Lock()
	twice := ""
	for i := range v.decisions {
		if before := &v.decisions[i]; before.key == d.key {
			if twice = samePolicy(before.limiter, d.limiter); twice != "" {
				break
			}
		}
	}
	if v.decisions == nil {
		v.decisions = v.room.decisions[:0]
	}
	v.decisions = append(v.decisions, *d)
	v.mu.Unlock()
	if twice != "" {
		warn(rl.cfg.Logger, WarnDoubleCharge, twice,
			"two RateLimits charge one request by the same key and policy; give one of them another policy, key or prefix, or remove it",
			slog.String("policy", twice))
	}
	v.tell(Event{Area: "http", Op: "ratelimit", Outcome: d.outcome(), Name: d.Result.Policy, Err: d.Err})
}

// samePolicy returns the name of a policy that both limiters have, or "".
func samePolicy(a, b *ratelimit.Limiter) string {
	for _, p := range a.Policies() {
		for _, q := range b.Policies() {
			if strings.EqualFold(p.Name(), q.Name()) && p.Limit() == q.Limit() && p.Window() == q.Window() {
				return p.Name()
			}
		}
	}
	return ""
}

// writeFields tells the client what is left.
func (rl *rateLimiter) writeFields(h http.Header, d *Decision) {
	res := &d.Result
	var buf [8]quota
	quotas, tight := buf[:0], 0
	retry := seconds(rl.retryAfter(d))
	holding := holdingOf(d)
	for i := range res.Policies {
		p := &res.Policies[i]
		if p.Shadow {
			continue
		}
		q := quota{name: p.Name, limit: p.Limit, remaining: p.Remaining, window: seconds(p.Window),
			next: seconds(p.NextAfter), reset: seconds(p.ResetAfter), unit: rl.cfg.QuotaUnit}
		if unit, ok := rl.cfg.QuotaUnits[p.Name]; ok {
			q.unit = unit
		}
		if slices.Contains(holding, p.Name) { // no window, and nobody knows when others end
			q.unit, q.window, q.next, q.reset = "concurrent-requests", 0, -1, seconds(rl.busyRetryAfter())
		} else if !res.Allowed && res.RetryAfter != ratelimit.Never {
			// Retry-After should not be earlier than what the fields say.
			if !p.Allowed {
				q.reset = seconds(p.RetryAfter)
			}
			if q.next > retry {
				q.next = -1
			}
		}
		if p.Name == res.Policy {
			tight = len(quotas)
		}
		quotas = append(quotas, q)
	}
	var partition []byte
	if len(rl.cfg.PartitionSecret) > 0 {
		mac := hmac.New(sha256.New, rl.cfg.PartitionSecret)
		mac.Write([]byte(d.key))
		partition = mac.Sum(nil)[:12]
	}
	rl.fields.write(h, quotas, tight, partition, res.At)
}

// statusClientClosed is what nginx logs for a client that went before it was
// answered. Nobody sees it but the log.
const statusClientClosed = 499

// failed answers when the limiter was used wrongly, or the client has gone.
func (rl *rateLimiter) failed(w http.ResponseWriter, r *http.Request, err error) {
	gone := r.Context().Err()
	if gone == nil {
		loggerOr(rl.cfg.Logger).LogAttrs(r.Context(), slog.LevelError, "rate limiter failed", slog.String("error", err.Error()))
	}
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case rl.cfg.Error != nil:
		rl.cfg.Error(w, r, err)
	case errors.Is(gone, context.Canceled):
		w.WriteHeader(statusClientClosed)
	case gone != nil:
		http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
	default:
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
	}
}

// holdingOf returns the names of the Concurrency policies of d's limiter.
func holdingOf(d *Decision) (names []string) {
	if !d.limiter.Holds() {
		return nil
	}
	for _, p := range d.limiter.Policies() {
		if p.Holds() {
			names = append(names, p.Name())
		}
	}
	return names
}

func (rl *rateLimiter) busyRetryAfter() time.Duration {
	if rl.cfg.BusyRetryAfter > 0 {
		return rl.cfg.BusyRetryAfter
	}
	return time.Second
}

// retryAfter is what a denied client is told. How long a lease lasts says nothing about
// when a unit is free: the guess stands for it.
func (rl *rateLimiter) retryAfter(d *Decision) time.Duration {
	res := &d.Result
	if res.Allowed || res.Banned || res.RetryAfter == ratelimit.Never || !d.limiter.Holds() {
		return res.RetryAfter
	}
	holding := holdingOf(d)
	var wait time.Duration
	for i := range res.Policies {
		p := &res.Policies[i]
		switch {
		case p.Allowed || p.Shadow:
		case slices.Contains(holding, p.Name):
			wait = max(wait, rl.busyRetryAfter())
		default:
			wait = max(wait, p.RetryAfter)
		}
	}
	if wait == 0 {
		return res.RetryAfter
	}
	return wait
}

var fallbackKey = ClientIP()

func clientIPKey(r *http.Request) string { return fallbackKey(r) }

// seenKey is the first key a limiter has seen, and from whom.
type seenKey struct {
	key  string
	from uint64
}

// strangers is how many requests of other clients with the first client's key
// make it certain that there is only one key.
const strangers = 100

// watch notices that different clients have the same key: a limiter behind a
// proxy that nobody named, or a KeyFunc that returns a constant by mistake.
func (rl *rateLimiter) watch(r *http.Request, key string) {
	if rl.judged.Load() {
		return
	}
	if strings.HasPrefix(key, "fixed:") || strings.HasPrefix(key, "route:") {
		rl.judged.Store(true) // it is meant
		return
	}
	var h maphash.Hash
	h.SetSeed(rl.seed)
	h.WriteString(parseAddr(r.RemoteAddr).String())
	for _, line := range r.Header["X-Forwarded-For"] {
		h.WriteString(line)
	}
	h.WriteString(r.UserAgent())
	from := h.Sum64()

	first := rl.first.Load()
	if first == nil {
		rl.first.CompareAndSwap(nil, &seenKey{strings.Clone(key), from})
		return
	}
	if first.key != key {
		rl.judged.Store(true)
		return
	}
	if first.from != from && rl.strange.Add(1) == strangers {
		rl.judged.Store(true)
		warn(rl.cfg.Logger, WarnOneKeyForAll, rl.limiter.Policies()[0].Name(),
			"requests of different clients all have one key, so they share one limit; "+
				"behind a proxy use ClientAddr with Trusted, and use Fixed if one limit for all is meant",
			slog.String("policy", rl.limiter.Policies()[0].Name()))
	}
}
