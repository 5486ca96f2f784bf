package demo

import (
	"net/http"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

// limits is the card that compares algorithms: each request is counted by all of
// them, and decided by the one that was chosen.
type limits struct {
	// by algorithm and then by failure policy; limiters of one algorithm share
	// their state.
	limiters map[string]map[string]*ratelimit.Limiter
}

const (
	tryLimit  = 20
	tryWindow = 10 * time.Second
)

type choice struct {
	Name, Label, Text string
	policy            ratelimit.Policy
	onFailure         ratelimit.FailurePolicy
}

var algorithms = []choice{
	{"sliding-log", "Sliding log", "exact: 20 in any 10 s", ratelimit.SlidingLog("log", tryLimit, tryWindow), 0},
	{"sliding-window", "Sliding window", "two counters, nearly as exact", ratelimit.SlidingWindow("window", tryLimit, tryWindow), 0},
	{"token-bucket", "Token bucket", "20 at once, then 2 a second", ratelimit.TokenBucket("bucket", tryLimit, tryWindow, tryLimit), 0},
	{"fixed-window", "Fixed window", "20, then all anew after 10 s", ratelimit.FixedWindow("fixed", tryLimit, tryWindow), 0},
}

var failures = []choice{
	{"local", "decide here, by half the limit", "", ratelimit.Policy{}, ratelimit.Local},
	{"open", "let everything through", "", ratelimit.Policy{}, ratelimit.FailOpen},
	{"closed", "let nothing through", "", ratelimit.Policy{}, ratelimit.FailClosed},
}

func newLimits(rdb redis.UniversalClient, timeout time.Duration, hooks ratelimit.Hooks) (*limits, error) {
	base, err := ratelimit.New(rdb, ratelimit.Config{Prefix: "redporch:limit:try:", Share: 0.5, Timeout: timeout, Hooks: hooks}, algorithms[0].policy)
	if err != nil {
		return nil, err
	}
	ls := &limits{limiters: make(map[string]map[string]*ratelimit.Limiter)}
	for _, a := range algorithms {
		ls.limiters[a.Name] = make(map[string]*ratelimit.Limiter)
		for _, f := range failures {
			if ls.limiters[a.Name][f.Name], err = base.With(a.policy.OnUnavailable(f.onFailure)); err != nil {
				return nil, err
			}
		}
	}
	return ls, nil
}

// chosen returns the algorithm and failure policy that a request asks for.
func chosen(r *http.Request) (algorithm, failure string) {
	algorithm, failure = algorithms[0].Name, failures[0].Name
	for _, a := range algorithms {
		if a.Name == r.FormValue("algorithm") {
			algorithm = a.Name
		}
	}
	for _, f := range failures {
		if f.Name == r.FormValue("failure") {
			failure = f.Name
		}
	}
	return algorithm, failure
}

func (ls *limits) pick(r *http.Request) *ratelimit.Limiter {
	algorithm, failure := chosen(r)
	return ls.limiters[algorithm][failure]
}

// verdict is what one algorithm says.
type verdict struct {
	Algorithm    string `json:"algorithm"`
	Allowed      bool   `json:"allowed"`
	Limit        int64  `json:"limit"`
	Remaining    int64  `json:"remaining"`
	RetryAfterMs int64  `json:"retry_after_ms"`
	ResetAfterMs int64  `json:"reset_after_ms"`
	Source       string `json:"source"`
}

func newVerdict(algorithm string, res ratelimit.Result) verdict {
	return verdict{algorithm, res.Allowed, res.Limit, res.Remaining, millis(res.RetryAfter), millis(res.ResetAfter), res.Source.String()}
}

func millis(d time.Duration) int64 { return (d + time.Millisecond - 1).Milliseconds() }

// try answers one request of the card. The middleware in front has decided by
// the chosen algorithm; the others only count.
func (ls *limits) try() http.Handler {
	return middleware.RateLimit(ls.limiters[algorithms[0].Name][failures[0].Name], middleware.ClientIP(), middleware.RateLimitConfig{
		Tier:    ls.pick,
		Headers: middleware.Draft11 | middleware.XRateLimit,
		Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			status := http.StatusTooManyRequests
			if decision(r).Source == ratelimit.SourceFailClosed {
				status = http.StatusServiceUnavailable
			}
			ls.answer(w, r, status)
		}),
	})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ls.answer(w, r, http.StatusOK) }))
}

// decision returns what the middleware in front has decided.
func decision(r *http.Request) ratelimit.Result {
	ds := middleware.Decisions(r)
	return ds[len(ds)-1].Result
}

func (ls *limits) answer(w http.ResponseWriter, r *http.Request, status int) {
	algorithm, failure := chosen(r)
	mine := newVerdict(algorithm, decision(r))
	list := make([]verdict, len(algorithms))
	done := make(chan int)
	for i, a := range algorithms {
		go func() {
			defer func() { done <- i }()
			if a.Name == algorithm {
				list[i] = mine
				return
			}
			res, _ := ls.limiters[a.Name][failure].Allow(r.Context(), middleware.ClientIP()(r))
			list[i] = newVerdict(a.Name, res)
		}()
	}
	for range algorithms {
		<-done
	}
	if r.Method == http.MethodPost { // the form
		outcome := "denied"
		if mine.Allowed {
			outcome = "allowed"
		}
		v := url.Values{"algorithm": {algorithm}, "failure": {failure}, "tried": {outcome}}
		http.Redirect(w, r, "/?"+v.Encode()+"#limit", http.StatusSeeOther)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, status, map[string]any{"decision": mine, "compared": list})
}
