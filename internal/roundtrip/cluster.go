package roundtrip

import "github.com/redis/go-redis/v9"

// clusterNode is the hook on a node's client of a cluster. Its connections are wires.
type clusterNode struct {
	wired
	eng *engine
}

var _ redis.Hook = clusterNode{}
