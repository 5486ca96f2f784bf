package session_test

import (
	"os"
	"testing"

	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(otherProcess); addr != "" {
		os.Exit(runOtherProcess(addr))
	}
	redistest.Main(m)
}
