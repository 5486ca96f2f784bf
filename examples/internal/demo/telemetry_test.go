package demo

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestJoin(t *testing.T) {
	type hooks struct {
		Told func(n int)
		Veto func() error
		None func()
	}
	var told []string
	no := errors.New("no")
	h := join(
		hooks{Told: func(n int) { told = append(told, fmt.Sprint("a", n)) }, Veto: func() error { return nil }},
		hooks{},
		hooks{Told: func(n int) { told = append(told, fmt.Sprint("b", n)) }, Veto: func() error { return no }},
		hooks{Veto: func() error { t.Error("asked after a veto"); return nil }},
	)
	h.Told(1)
	if want := []string{"a1", "b1"}; !slices.Equal(told, want) {
		t.Errorf("told %v; want %v", told, want)
	}
	if err := h.Veto(); err != no {
		t.Errorf("Veto() = %v; want %v", err, no)
	}
	if h.None != nil {
		t.Error("a hook that nobody has is not nil")
	}
	if h := join[hooks](); h.Told != nil || h.Veto != nil {
		t.Error("hooks joined from nothing")
	}
}
