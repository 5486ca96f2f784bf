package roundtrip

import (
	"log/slog"
	"regexp"
	"strings"
	"sync"
)

// What an error reply says of the call. Misuse and foreign data are known, and so is what
// Redis itself says when it can't or won't serve. Everything else means as well that Redis
// did not decide: servers, their versions, and the proxies and quotas before them have
// words of their own.
var (
	// wrong begins replies to calls that were wrong for the data or the topology.
	wrong = []string{
		"WRONGTYPE ", "CROSSSLOT ", "MOVED ", "ASK ", "NOSCRIPT ", "EXECABORT ",
		"ERR value is not", "ERR hash value is not", "ERR increment", "ERR decrement", "ERR offset is out of range",
		"ERR wrong number of arguments", "ERR syntax error", "ERR Error compiling script", "ERR bit",
		"ERR Number of keys", "ERR invalid expire time", "ERR min or max is not", "ERR string exceeds",
	}
	// refusing begins replies that somebody has to change the configuration for.
	refusing = []string{
		"OOM ", "NOPERM ", "NOAUTH ", "WRONGPASS ", "READONLY ", "DENIED ",
		"ERR unknown command", "ERR Unknown command", "ERR unknown subcommand", "ERR Unknown subcommand", "ERR DB index is out of range",
		"ERR ACL failure", "ERR The user executing the script can't", "The user executing the script can't",
		"ERR max requests limit exceeded", "ERR operation not permitted", "ERR AUTH ", "ERR invalid password",
		"ERR Client sent AUTH", "ERR invalid username",
	}
	// passing begins replies of a server that can't serve now.
	passing = []string{
		"LOADING ", "CLUSTERDOWN ", "TRYAGAIN ", "MASTERDOWN ", "NOREPLICAS ", "BUSY ", "MISCONF ", "UNBLOCKED ",
		"ERR max number of clients reached", "Script killed by user",
	}
	// inScript is where a script's error has the reason of it, on Redis 6.2 with the code
	// of the reply that the script met.
	inScript = regexp.MustCompile(`(?s)user_script:(?: ?\d+:)? ?-?(.*)`)
)

// replyKind returns the class of an error reply, and whether it is one that is known.
func replyKind(text string) (kind error, known bool) {
	if kind := listed(text); kind != nil {
		return kind, true
	}
	if !strings.Contains(text, "user_script") {
		return ErrUnavailable, false
	}
	if m := inScript.FindStringSubmatch(text); m != nil {
		if kind := listed(m[1]); kind != nil {
			return kind, true
		}
	}
	return ErrBug, true // of the script, or of the data it found
}

func listed(text string) error {
	for _, l := range []struct {
		kind   error
		begins []string
	}{{ErrBug, wrong}, {ErrRefused, refusing}, {ErrUnavailable, passing}} {
		for _, b := range l.begins {
			if strings.HasPrefix(text, b) || text == strings.TrimSuffix(b, " ") {
				return l.kind
			}
		}
	}
	return nil
}

// isUnknownReply reports whether err is an error reply that is not known.
func isUnknownReply(err error) bool {
	if !isReply(err) {
		return false
	}
	_, known := replyKind(err.Error())
	return !known
}

// told has the replies that were reported.
var told struct {
	sync.Mutex
	texts map[string]bool
}

const maxTold = 16 // of each process, lest a text with a number in it floods the log

// tell reports an unknown reply with its text, once.
func tell(text string) {
	if len(text) > 200 {
		text = text[:200]
	}
	told.Lock()
	defer told.Unlock()
	if told.texts[text] || len(told.texts) >= maxTold {
		return
	}
	if told.texts == nil {
		told.texts = map[string]bool{}
	}
	told.texts[text] = true
	slog.Warn("redporch: Redis, or what stands before it, answered with an error that redporch does not know; it is taken for unavailable",
		"code", "unknown-error-reply", "reply", text,
		"docs", "https://github.com/redporch/redporch/blob/main/docs/warnings.md#unknown-error-reply")
}
