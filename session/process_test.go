package session_test

import (
	"encoding/gob"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

const otherProcess = "REDPORCH_TEST_OTHER_PROCESS"

// stranger shifts the numbers that gob gives to types in the other process.
type stranger struct{ A, B, C int }

// runOtherProcess is this test binary as another server of the app: it puts values
// into a session that was begun elsewhere.
func runOtherProcess(addr string) int {
	gob.Register(&stranger{})
	gob.NewEncoder(discardBytes{}).Encode(&stranger{})
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	st, err := session.New(rdb, session.Config{})
	if err != nil {
		return 1
	}
	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	r.Header.Set("Cookie", "s="+os.Getenv(otherProcess+"_COOKIE"))
	s, err := st.Get(r, "s")
	if err != nil || s.IsNew {
		return 2
	}
	s.Values["account"] = &account{"ada", []string{"a", "b"}}
	s.Values["map"] = map[string]any{"a": 1, "b": []any{"x"}, "c": &account{Name: "eve"}}
	s.Values[role("admin")] = role("yes")
	s.Values[[2]string{"k", "l"}] = &account{Name: "bob"}
	if s.Save(r, w) != nil {
		return 3
	}
	return 0
}

type discardBytes struct{}

func (discardBytes) Write(b []byte) (int, error) { return len(b), nil }

// What another process stored is not taken for changed: gob numbers types and
// walks maps differently there.
func TestNoFalseChangesBetweenProcesses(t *testing.T) {
	m, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{})
	b := newBrowser()
	b.edit(t, st, set("x", 1))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), otherProcess+"="+m.Addr(), otherProcess+"_COOKIE="+b.jar["s"])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("other process: %v\n%s", err, out)
	}
	for range 5 {
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, err := st.Get(r, "s")
			if a, _ := s.Values["account"].(*account); err != nil || a == nil || a.Roles[1] != "b" || s.Values[role("admin")] != role("yes") || len(s.Values) != 5 {
				t.Fatalf("Values = %v, %v", s.Values, err)
			}
			n := redistest.Count(t, rdb, func() {
				if _, err := st.Commit(w, r, s); err != nil {
					t.Fatal(err)
				}
			})
			if n.Total != 0 {
				t.Errorf("an unchanged session was written: %+v", n)
			}
		})
	}
	b.edit(t, st, func(s *sessions.Session) { s.Values["account"].(*account).Roles[1] = "changed in place" })
	if a := b.values(t, st)["account"].(*account); a.Roles[1] != "changed in place" {
		t.Errorf("account = %+v; want the change", a)
	}
}
