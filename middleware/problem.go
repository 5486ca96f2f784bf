package middleware

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/redporch/redporch/ratelimit"
)

// The problem types of draft-ietf-httpapi-ratelimit-headers-11, section 5.
const (
	problemTypes         = "https://iana.org/assignments/http-problem-types#"
	problemQuota         = problemTypes + "quota-exceeded"
	problemCapacity      = problemTypes + "temporary-reduced-capacity"
	problemAbnormalUsage = problemTypes + "abnormal-usage-detected"
)

// deny answers a denied request.
func (rl *rateLimiter) deny(w http.ResponseWriter, r *http.Request, d *Decision) {
	res := &d.Result
	h := w.Header()
	h["Cache-Control"] = []string{"no-store"} // RFC 6585, section 4
	status, kind, title := http.StatusTooManyRequests, problemQuota, "Quota Exceeded"
	switch {
	case res.Source == ratelimit.SourceFailClosed:
		status, kind, title = http.StatusServiceUnavailable, problemCapacity, "Temporary Reduced Capacity"
	case res.Banned:
		kind, title = problemAbnormalUsage, "Abnormal Usage Detected"
	}
	detail := "The request costs more than is ever admitted at once."
	if res.RetryAfter != ratelimit.Never {
		// A delay of 0 would invite the client back at once (RFC 9110, section
		// 10.2.3, allows it).
		retry := max(seconds(rl.retryAfter(d)), 1)
		text := strconv.FormatInt(retry, 10)
		h["Retry-After"] = []string{text}
		detail = "Try again in " + text + " seconds."
		if retry == 1 {
			detail = "Try again in 1 second."
		}
	}
	if rl.cfg.Denied != nil {
		rl.cfg.Denied.ServeHTTP(w, r)
		return
	}
	h.Del("Content-Length")
	h["X-Content-Type-Options"] = []string{"nosniff"}
	if prefersText(r.Header["Accept"]) {
		h["Content-Type"] = []string{"text/plain; charset=utf-8"}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(title + ". " + detail + "\n"))
		return
	}
	h["Content-Type"] = []string{"application/problem+json"}
	var buf [512]byte
	b := append(buf[:0], `{"type":"`...)
	b = append(b, kind...)
	b = append(b, `","title":"`...)
	b = append(b, title...)
	b = append(b, `","status":`...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, `,"detail":"`...)
	b = append(b, detail...)
	b = append(b, `","violated-policies":[`...)
	first := true
	for i := range res.Policies {
		if p := &res.Policies[i]; !p.Allowed && !p.Shadow {
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(b, '"')
			b = append(b, p.Name...) // letters, digits and -_. only
			b = append(b, '"')
		}
	}
	b = append(b, "]}\n"...)
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// prefersText reports whether a client names text but no JSON among what it
// accepts, as browsers do for a page.
func prefersText(accept []string) bool {
	text := false
	for _, line := range accept {
		if strings.Contains(line, "json") {
			return false
		}
		text = text || strings.Contains(line, "text/")
	}
	return text
}
