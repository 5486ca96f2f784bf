package middleware

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
)

// Code names a misconfiguration. Each is logged once for each logger and
// subject, at level Warn, with the attributes code and docs; docs/warnings.md
// describes what it means and what to do.
type Code string

// The warnings of this package.
const (
	WarnUntrustedForwarding     Code = "untrusted-forwarding"
	WarnClientAddrUnknown       Code = "client-addr-unknown"
	WarnLimiterBeforeClientAddr Code = "limiter-before-client-addr"
	WarnLimiterBeforeSessions   Code = "limiter-before-sessions"
	WarnOneKeyForAll            Code = "one-key-for-all"
	WarnDoubleCharge            Code = "double-charge"
	WarnSessionsTwice           Code = "sessions-twice"
	WarnRecoverInside           Code = "recover-inside"
	WarnAccessLogInside         Code = "access-log-inside"
	WarnObserveInside           Code = "observe-inside"
	WarnRequestIDInside         Code = "request-id-inside"
	WarnInsecureCookie          Code = "insecure-cookie"
	WarnUnsignedSessions        Code = "unsigned-sessions"
	WarnPublicSession           Code = "public-session-response"
	WarnRouteUnknown            Code = "route-unknown"
	WarnHeadersSent             Code = "headers-sent"
	WarnSessionAbandoned        Code = "session-abandoned"
	WarnEvictsSessions          Code = "evicts-sessions"
	WarnNoEvictionPolicy        Code = "maxmemory-noeviction"
	WarnNoMaxMemory             Code = "maxmemory-unset"
	WarnClockSkew               Code = "clock-skew"
	WarnRedisTooOld             Code = "redis-too-old"
	WarnClusterSlowReload       Code = "cluster-slow-reload"
	WarnNotPersistent           Code = "redis-not-persistent"
	WarnClusterPlainClient      Code = "cluster-plain-client"
	WarnRoutingProxy            Code = "routing-proxy"
	WarnRedisProxy              Code = "redis-proxy"
	WarnReplica                 Code = "redis-replica"
	WarnSubscribeRefused        Code = "subscribe-refused"
	WarnUnknownReply            Code = "unknown-error-reply"
)

const warningsPage = "https://github.com/redporch/redporch/blob/main/docs/warnings.md#"

// Docs returns the address of the paragraph on c.
func (c Code) Docs() string { return warningsPage + string(c) }

// warned holds what has been logged: loggers times codes times subjects, which are
// names from the program, and few. A program that gives routes the names of paths has
// no end of them, so there is a bound: maxWarned subjects of maxSubject bytes, less
// than 1 MB in all; what comes after is not logged.
var (
	warned      sync.Map // warning → struct{}
	warnedCount atomic.Int64
)

const (
	maxWarned  = 4096
	maxSubject = 128
)

type warning struct {
	logger  *slog.Logger
	code    Code
	subject string
}

// warn logs text once for each logger, code and subject.
func warn(logger *slog.Logger, code Code, subject, text string, attrs ...slog.Attr) {
	logger = loggerOr(logger)
	if len(subject) > maxSubject {
		subject = subject[:maxSubject]
	}
	key := warning{logger, code, subject}
	if _, seen := warned.Load(key); seen {
		return
	}
	if warnedCount.Load() >= maxWarned {
		return
	}
	key.subject = strings.Clone(subject) // not the request it may be cut from
	if _, seen := warned.LoadOrStore(key, struct{}{}); seen {
		return
	}
	warnedCount.Add(1)
	attrs = append(attrs, slog.String("code", string(code)), slog.String("docs", code.Docs()))
	logger.LogAttrs(context.Background(), slog.LevelWarn, "redporch: "+text, attrs...)
}
