package demo

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/middleware"
)

// config is the environment, read and checked.
//
//	ADDR             address to listen on; default ":8080"
//	REDIS_URL        which Redis to use; empty: one inside this process.
//	                 redis://, rediss:// and unix:// as go-redis' ParseURL reads them;
//	                 redis+cluster://host:port?addr=host:port (rediss+cluster:// with TLS);
//	                 redis+sentinel://host:port?master_name=NAME&addr=host:port
//	REDIS_TIMEOUT    how long one call to Redis may take before its policy decides
//	                 without it, such as 100ms; default 250ms
//	SESSION_KEYS     comma-separated keys that sign the session cookie, in hex, at least
//	                 32 bytes each; the first signs, all verify; empty: a random one
//	BEHIND_TLS       "true" when a proxy in front of this server speaks HTTPS: the cookie
//	                 is then __Host-sid with Secure; default "false"
//	TRUSTED_PROXIES  comma-separated addresses and prefixes, such as 10.0.0.0/8, whose X-Forwarded-For
//	                 is believed; empty: none
type config struct {
	addr           string
	redisURL       string
	redisTimeout   time.Duration
	keys           [][]byte
	randomKeys     bool
	behindTLS      bool
	trustedProxies []netip.Prefix
}

func readConfig(getenv func(string) string) (config, error) {
	var errs []error
	bad := func(name, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
	}
	c := config{addr: getenv("ADDR"), redisURL: getenv("REDIS_URL")}
	if c.addr == "" {
		c.addr = ":8080"
	}
	if _, port, err := net.SplitHostPort(c.addr); err != nil {
		bad("ADDR", "%q is not host:port, such as :8080", c.addr)
	} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		bad("ADDR", "port %q is not a number from 0 to 65535", port)
	}
	if c.redisURL != "" {
		if _, _, err := parseRedisURL(c.redisURL); err != nil {
			// The URL may hold a password: name the fault, not the URL.
			bad("REDIS_URL", "%v; use for example redis://localhost:6379/0", err)
		}
	}
	c.redisTimeout = 250 * time.Millisecond
	if s := getenv("REDIS_TIMEOUT"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 || d > time.Minute {
			bad("REDIS_TIMEOUT", "%q is not a duration over 0 and up to 1m, such as 250ms", s)
		}
		c.redisTimeout = d
	}
	for i, s := range splitList(getenv("SESSION_KEYS")) {
		key, err := hex.DecodeString(s)
		switch {
		case err != nil:
			bad("SESSION_KEYS", "key %d is not hex; make one with: openssl rand -hex 32", i+1)
		case len(key) < 32:
			bad("SESSION_KEYS", "key %d has %d bytes, at least 32 are needed; make one with: openssl rand -hex 32", i+1, len(key))
		}
		c.keys = append(c.keys, key)
	}
	if len(c.keys) == 0 {
		c.keys, c.randomKeys = [][]byte{make([]byte, 32)}, true
		rand.Read(c.keys[0])
	}
	if s := getenv("BEHIND_TLS"); s != "" {
		v, err := strconv.ParseBool(s)
		if err != nil {
			bad("BEHIND_TLS", "%q is neither true nor false", s)
		}
		c.behindTLS = v
	}
	for _, s := range splitList(getenv("TRUSTED_PROXIES")) {
		p, err := middleware.ParsePrefixes(s)
		if err != nil {
			bad("TRUSTED_PROXIES", "%q is neither an address nor a prefix such as 10.0.0.0/8", s)
			continue
		}
		c.trustedProxies = append(c.trustedProxies, p...)
	}
	if len(errs) > 0 {
		// One line, as whoever reads it sees it in a log.
		return c, errors.New(strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; "))
	}
	return c, nil
}

func splitList(s string) (out []string) {
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// parseRedisURL returns *redis.Options, *redis.ClusterOptions or
// *redis.FailoverOptions, and what kind of Redis that is.
func parseRedisURL(url string) (opts any, kind string, err error) {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return nil, "", errors.New("no scheme")
	}
	plain, topology, _ := strings.Cut(scheme, "+")
	switch topology {
	case "":
		o, err := redis.ParseURL(url)
		return o, "server", scrubURL(err)
	case "cluster":
		o, err := redis.ParseClusterURL(plain + "://" + rest)
		return o, "cluster", scrubURL(err)
	case "sentinel":
		o, err := redis.ParseFailoverURL(plain + "://" + rest)
		if err == nil && o.MasterName == "" {
			err = errors.New("master_name is missing")
		}
		return o, "sentinel", scrubURL(err)
	}
	return nil, "", fmt.Errorf("scheme %q is not redis, rediss, unix, redis+cluster or redis+sentinel", scheme)
}

// scrubURL drops the URL that net/url puts into its errors, with the password.
func scrubURL(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if strings.HasPrefix(text, "parse ") {
		return errors.New("it is not a URL")
	}
	return errors.New(strings.TrimPrefix(text, "redis: "))
}
