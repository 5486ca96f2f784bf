package roundtrip_test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// Slot agrees with the server.
func TestSlot(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		for _, key := range []string{"", "a", "foo", "{foo}", "{foo}bar", "x{foo}bar{zap}", "{}foo", "a{}b{c}", "{", "}", "{a", "a}{b}", "äöü", "\x00\xff"} {
			want, err := rdb.ClusterKeySlot(t.Context(), key).Result()
			if err != nil {
				t.Fatal(err)
			}
			if got := int64(roundtrip.Slot(key)); got != want {
				t.Errorf("Slot(%q) = %d; want %d", key, got, want)
			}
		}
	})
	if got := roundtrip.Slot("123456789"); got != 0x31C3 {
		t.Errorf("Slot(123456789) = %#x; want 0x31c3, the check value of CRC-16/XMODEM", got)
	}
}

// Keys with the same hash tag share a slot.
func FuzzSlot(f *testing.F) {
	f.Add("a", "b")
	f.Add("", "}")
	f.Fuzz(func(t *testing.T, tag, rest string) {
		if s := roundtrip.Slot(tag); s >= 16384 {
			t.Fatalf("Slot(%q) = %d; want less than 16384", tag, s)
		}
		for _, r := range tag {
			if r == '{' || r == '}' {
				return
			}
		}
		if tag == "" {
			return
		}
		if a, b := roundtrip.Slot("{"+tag+"}"+rest), roundtrip.Slot(tag); a != b {
			t.Fatalf("Slot({%q}%q) = %d; want %d", tag, rest, a, b)
		}
	})
}
