package session

import (
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

func testKey(b byte) []byte {
	sum := sha256.Sum256([]byte{b})
	return sum[:]
}

// What the version before bonds has encrypted is read, saved and carried over to a bond
// with the next id; in a session that has a bond it is refused.
func TestValuesWithoutABond(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st, err := New(rdb, Config{Timeout: time.Minute, EncryptionKeys: [][]byte{testKey(1)}})
		if err != nil {
			t.Fatal(err)
		}
		r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
		s, _ := st.New(r, "s")
		s.Values["user"], s.Values["list"] = "ada", []any{"a", "b"}
		if err := s.Save(r, w); err != nil {
			t.Fatal(err)
		}
		x := st.state(s)
		ctx := t.Context()
		unbind := func(key, tag string, skip ...string) {
			rdb.HDel(ctx, key, fieldBond)
			for name, held := range rdb.HGetAll(ctx, key).Val() {
				if name == fieldMeta {
					continue
				}
				plain, err := st.open(x, tag, name, held)
				if err != nil {
					t.Fatal(err)
				}
				rdb.HSet(ctx, key, name, st.sealAs(sealedUnbound, unboundFor("s", tag, name), plain))
			}
		}
		bound := rdb.HGetAll(ctx, x.tok.key).Val()
		unbind(x.tok.key, x.tok.tag())
		cookie := w.Result().Cookies()[0]
		load := func() (*http.Request, *state, map[any]any) {
			r := httptest.NewRequest("GET", "/", nil)
			r.AddCookie(cookie)
			s, err := st.Get(r, "s")
			if err != nil {
				t.Fatal(err)
			}
			return r, st.state(s), s.Values
		}
		r, y, values := load()
		if values["user"] != "ada" || len(values["list"].([]any)) != 2 {
			t.Fatalf("Values = %v; want what the earlier version stored", values)
		}
		s, _ = st.Get(r, "s")
		s.Values["more"] = 1
		if err := s.Save(r, httptest.NewRecorder()); err != nil || y.bond == nil {
			t.Errorf("Save = %v, bond %v; want one", err, y.bond)
		}
		for name, held := range rdb.HGetAll(ctx, y.tok.key).Val() {
			if name != fieldMeta && !strings.HasPrefix(held, string([]byte{sealedMark})) {
				t.Errorf("field %q is not bound after Save", name)
			}
		}
		r, y, values = load()
		s, _ = st.Get(r, "s")
		w = httptest.NewRecorder()
		if err := st.Regenerate(w, r, s); err != nil || y.bond == nil || len(values) != 3 {
			t.Fatalf("Regenerate of %v = %v, bond %v; want one", values, err, y.bond)
		}
		cookie = w.Result().Cookies()[0]
		key := y.tok.key
		for name, held := range rdb.HGetAll(ctx, key).Val() {
			if name != fieldMeta && !strings.HasPrefix(held, string([]byte{sealedMark})) {
				t.Errorf("field %q is not bound after Regenerate", name)
			}
		}
		if _, _, values = load(); values["user"] != "ada" || values["more"] != 1 || len(values["list"].([]any)) != 2 {
			t.Errorf("Values after Regenerate = %v", values)
		}
		rdb.HSet(ctx, key, "suser", st.sealAs(sealedUnbound, unboundFor("s", y.tok.tag(), "suser"), "\x10\x04eve"))
		if _, _, values = load(); values["user"] != nil {
			t.Errorf("user = %v; want a value without a bond refused", values["user"])
		}
		rdb.HSet(ctx, key, "suser", bound["suser"]) // of the session's own past, under another bond
		if _, _, values = load(); values["user"] != nil {
			t.Errorf("user = %v; want a value of another bond refused", values["user"])
		}
	})
}
