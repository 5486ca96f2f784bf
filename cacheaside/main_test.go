package cacheaside_test

import (
	"os"
	"testing"

	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child() // this process is one of several of TestProcesses
		return
	}
	redistest.Main(m)
}
