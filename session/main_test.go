package session_test

import (
	"testing"

	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }
