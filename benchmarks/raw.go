package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// The raw limits: one command for each call, with nothing around it. A library
// that needs one round trip can't be quicker than its client's raw limit.

var errWrongReply = errors.New("not the reply that was expected")

// rawCommand makes a command and says whether its reply is right.
type rawCommand struct {
	prepare func(ctx context.Context, rdb *redis.Client) error
	make    func(ctx context.Context, c *caller) redis.Cmder
	check   func(cmd redis.Cmder) bool
}

// rawValue has about the size of a session or of a cached profile.
const rawValue = `{"id":4211,"name":"Ada Lovelace","email":"ada@porch.example","plan":"analytical","since":1815}`

var rawKeys = func() (keys [population]string) {
	for i := range keys {
		keys[i] = "raw:{benchmark}:a-key-about-as-long-as-a-session's:" + strconv.Itoa(i)
	}
	return keys
}()

var getCommand = rawCommand{
	prepare: func(ctx context.Context, rdb *redis.Client) error {
		for _, k := range rawKeys {
			if err := rdb.Set(ctx, k, rawValue, 0).Err(); err != nil {
				return err
			}
		}
		return nil
	},
	make: func(ctx context.Context, c *caller) redis.Cmder {
		return redis.NewStringCmd(ctx, "get", rawKeys[c.pick(population)])
	},
	check: func(cmd redis.Cmder) bool { return cmd.(*redis.StringCmd).Val() == rawValue },
}

// rawScript is the least that a limiter's script can do.
const rawScript = "return redis.call('INCR', KEYS[1])"

// incrCommand returns the EVALSHA of rawScript, on the given number of keys.
func incrCommand(keys int) rawCommand {
	sha := new(string)
	return rawCommand{
		prepare: func(ctx context.Context, rdb *redis.Client) (err error) {
			*sha, err = rdb.ScriptLoad(ctx, rawScript).Result()
			return err
		},
		make: func(ctx context.Context, c *caller) redis.Cmder {
			cmd := redis.NewIntCmd(ctx, "evalsha", *sha, 1, "n:"+rawKeys[c.pick(keys)])
			cmd.SetFirstKeyPos(3)
			return cmd
		},
		check: func(cmd redis.Cmder) bool { return cmd.(*redis.IntCmd).Val() > 0 },
	}
}

// rawDirect sends each command alone, on a connection of the pool.
func rawDirect(raw rawCommand) func(*harness) (body, error) {
	return func(h *harness) (body, error) {
		ctx := context.Background()
		rdb := h.goRedis()
		return raw.by(ctx, rdb.Process), raw.prepare(ctx, rdb)
	}
}

// rawAutopipeline sends them through go-redis' autopipeliner.
func rawAutopipeline(raw rawCommand) func(*harness) (body, error) {
	return func(h *harness) (body, error) {
		ctx := context.Background()
		rdb := h.goRedis()
		ap, err := rdb.AutoPipeline()
		if err != nil {
			return body{}, err
		}
		return raw.by(ctx, ap.Process), raw.prepare(ctx, rdb)
	}
}

func (raw rawCommand) by(ctx context.Context, process func(context.Context, redis.Cmder) error) body {
	return body{func(c *caller) error {
		cmd := raw.make(ctx, c)
		if err := process(ctx, cmd); err != nil {
			return err
		}
		if !raw.check(cmd) {
			return errWrongReply
		}
		return nil
	}}
}

func (h *harness) rueidis() (rueidis.Client, error) {
	client, err := rueidis.NewClient(h.rueidisOption())
	if err != nil {
		return nil, fmt.Errorf("rueidis: %w", err)
	}
	h.later(client.Close)
	return client, nil
}

func rawRueidisGet(h *harness) (body, error) {
	ctx := context.Background()
	client, err := h.rueidis()
	if err != nil {
		return body{}, err
	}
	return body{func(c *caller) error {
		v, err := client.Do(ctx, client.B().Get().Key(rawKeys[c.pick(population)]).Build()).ToString()
		if err == nil && v != rawValue {
			err = errWrongReply
		}
		return err
	}}, getCommand.prepare(ctx, h.goRedis())
}

func rawRueidisIncr(keys int) func(*harness) (body, error) {
	return func(h *harness) (body, error) {
		ctx := context.Background()
		client, err := h.rueidis()
		if err != nil {
			return body{}, err
		}
		script := rueidis.NewLuaScript(rawScript)
		return body{func(c *caller) error {
			n, err := script.Exec(ctx, client, []string{"n:" + rawKeys[c.pick(keys)]}, nil).AsInt64()
			if err == nil && n <= 0 {
				err = errWrongReply
			}
			return err
		}}, nil
	}
}
