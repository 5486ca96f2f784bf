package demo

import (
	"context"
	"errors"
	"reflect"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// Telemetry is told what the server does. examples/observed makes two of them, one
// for OpenTelemetry and one for Prometheus, in a module of its own, since their
// libraries are many. Every field may be nil.
type Telemetry struct {
	Middleware  middleware.Middleware // in the place of middleware.Observe
	Sessions    session.Hooks
	RateLimit   func(limiter string) ratelimit.Hooks
	Cache       func(cache string) cacheaside.Hooks
	Load        func(cache string, load Loader) Loader
	AddSessions func(store string, stats func() session.Stats) error
	AddCache    func(cache string, stats func() cacheaside.Stats) error
	Redis       func(redis.UniversalClient) error
}

// Loader reads a profile from what plays the database.
type Loader func(ctx context.Context, id int) (profile, error)

// allTelemetry is told by one call each.
type allTelemetry []Telemetry

func (all allTelemetry) middleware() middleware.Middleware {
	var chain []middleware.Middleware
	for _, t := range all {
		if t.Middleware != nil {
			chain = append(chain, t.Middleware)
		}
	}
	return middleware.Chain(chain...)
}

func (all allTelemetry) sessions() session.Hooks {
	var hooks []session.Hooks
	for _, t := range all {
		hooks = append(hooks, t.Sessions)
	}
	return join(hooks...)
}

func (all allTelemetry) rateLimit(limiter string, own ratelimit.Hooks) ratelimit.Hooks {
	hooks := []ratelimit.Hooks{own}
	for _, t := range all {
		if t.RateLimit != nil {
			hooks = append(hooks, t.RateLimit(limiter))
		}
	}
	return join(hooks...)
}

func (all allTelemetry) cache(cache string) cacheaside.Hooks {
	var hooks []cacheaside.Hooks
	for _, t := range all {
		if t.Cache != nil {
			hooks = append(hooks, t.Cache(cache))
		}
	}
	return join(hooks...)
}

func (all allTelemetry) load(cache string, load Loader) Loader {
	for _, t := range all {
		if t.Load != nil {
			load = t.Load(cache, load)
		}
	}
	return load
}

// add has the statistics of the app's store and cache read.
func (all allTelemetry) add(store string, sessions *session.Store, cache string, profiles *cacheaside.Cache[int, profile]) error {
	var errs []error
	for _, t := range all {
		if t.AddSessions != nil {
			errs = append(errs, t.AddSessions(store, sessions.Stats))
		}
		if t.AddCache != nil {
			errs = append(errs, t.AddCache(cache, profiles.Stats))
		}
	}
	return errors.Join(errs...)
}

func (all allTelemetry) redis(rdb redis.UniversalClient) error {
	var errs []error
	for _, t := range all {
		if t.Redis != nil {
			errs = append(errs, t.Redis(rdb))
		}
	}
	return errors.Join(errs...)
}

// join makes one struct of hooks of several: each of its functions calls theirs in
// turn. Where hooks return something, the first that is not nil ends the turn.
func join[H any](all ...H) (joined H) {
	out := reflect.ValueOf(&joined).Elem()
	for i := range out.NumField() {
		var funcs []reflect.Value
		for _, h := range all {
			if f := reflect.ValueOf(h).Field(i); !f.IsNil() {
				funcs = append(funcs, f)
			}
		}
		switch len(funcs) {
		case 0:
		case 1:
			out.Field(i).Set(funcs[0])
		default:
			out.Field(i).Set(reflect.MakeFunc(out.Field(i).Type(), func(args []reflect.Value) (results []reflect.Value) {
				for _, f := range funcs {
					if results = f.Call(args); len(results) > 0 && !results[0].IsNil() {
						break
					}
				}
				return results
			}))
		}
	}
	return joined
}
