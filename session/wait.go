package session

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// ErrNotReplicated says that fewer replicas than [Config.Replicas] acknowledged a
// write in time. The master has carried it out, and the session and its cookie
// are as after a success; it is lost if the master fails before a replica has it.
// It does not match [ErrUnavailable].
var ErrNotReplicated = roundtrip.ErrNotReplicated

// maxReplicas bounds Config.Replicas: more was a mistake.
const maxReplicas = 16

// write sends what must not be lost, and waits for replicas if Config.Replicas
// asks for it. A touch changes nothing but an expiry, which nobody waits for.
func (st *Store) write(ctx context.Context, op string, cmds ...redis.Cmder) error {
	if st.cfg.Replicas == 0 || op == "touch" {
		return st.conn.Do(ctx, op, cmds...)
	}
	return st.conn.DoReplicated(ctx, op, st.cfg.Replicas, cmds...)
}

// onMaster reports whether a write was carried out: its replies may be read, and
// what is noted of the session must be what it wrote.
func onMaster(err error) bool { return err == nil || errors.Is(err, ErrNotReplicated) }
