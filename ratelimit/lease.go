package ratelimit

import (
	"crypto/rand"
	"strconv"
	"sync/atomic"
)

// Leases are named by a random text of the process and a number of its own, so
// that no two calls anywhere hold the same one.
var (
	leaseProcess = rand.Text()[:16]
	leaseNumber  atomic.Uint64
)

func newLease() string {
	return leaseProcess + "-" + strconv.FormatUint(leaseNumber.Add(1), 36)
}
