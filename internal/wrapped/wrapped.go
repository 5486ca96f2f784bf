// Package wrapped looks into clients that somebody has put a type of his own around.
package wrapped

import (
	"reflect"

	"github.com/redis/go-redis/v9"
)

// maxWraps bounds the clients in one another that Client goes through.
const maxWraps = 16

// Client returns the go-redis client that a type of somebody's own passes its calls on
// to, as far as that can be seen: its method Unwrap says so, or it embeds the client.
// Calls still go through rdb. What is found tells the topology: keys of different slots
// can't meet on a cluster, whatever is around its client.
func Client(rdb redis.UniversalClient) redis.UniversalClient {
	for range maxWraps {
		inner := inside(rdb)
		if inner == nil {
			break
		}
		rdb = inner
	}
	return rdb
}

func inside(rdb redis.UniversalClient) redis.UniversalClient {
	switch c := rdb.(type) {
	case nil, *redis.Client, *redis.ClusterClient, *redis.Ring, *redis.AutoPipeliner:
		return nil
	case interface{ Unwrap() redis.UniversalClient }:
		if v := reflect.ValueOf(c); v.Kind() == reflect.Pointer && v.IsNil() {
			return nil
		}
		return c.Unwrap()
	}
	v := reflect.ValueOf(rdb)
	for v.Kind() == reflect.Pointer {
		if v = v.Elem(); !v.IsValid() {
			return nil
		}
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	for i := range v.NumField() {
		if field := v.Type().Field(i); !field.Anonymous || !field.IsExported() {
			continue
		}
		f := v.Field(i)
		if k := f.Kind(); k != reflect.Interface && k != reflect.Pointer || f.IsNil() {
			continue
		}
		if inner, ok := f.Interface().(redis.UniversalClient); ok {
			return inner
		}
	}
	return nil
}
