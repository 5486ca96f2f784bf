package cacheaside_test

import (
	"context"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// quiet drops what go-redis logs about servers that tests have killed.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child() // this process is one of several of TestProcesses
		return
	}
	redis.SetLogger(quiet{})
	redistest.Main(m)
}
