package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/ratelimit"
)

var errBudget = errors.New("budget used up")

// model answers questions at a cost that is known only afterwards.
type model struct {
	budget *ratelimit.Limiter
}

// ask reserves the most an answer may cost, and settles for what it did cost.
func (m model) ask(ctx context.Context, user, question string) (string, error) {
	const most = 100
	r, err := m.budget.Reserve(ctx, "user:"+user, most)
	if err != nil {
		return "", err // misuse, or ctx has ended
	}
	if !r.Allowed {
		return "", fmt.Errorf("%w: %d left, again in %v", errBudget, r.Remaining, r.RetryAfter.Round(time.Minute))
	}
	defer r.Cancel(ctx) // gives all back if we return early; does nothing after Commit

	answer := "yes"
	cost := int64(len(question))
	return answer, r.Commit(ctx, cost)
}

// A budget of 150 units an hour for each user, from which answers of unknown cost
// are paid.
func Example_budget() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	budget, err := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.SlidingLog("units", 150, time.Hour))
	if err != nil {
		panic(err)
	}
	m := model{budget}
	ctx := context.Background()
	for _, question := range []string{"Is it a sphere?", "Is it, though, in all of its parts, a sphere?", "Really?"} {
		answer, err := m.ask(ctx, "ada", question)
		fmt.Printf("%q %v\n", answer, err)
	}
	// Output:
	// "yes" <nil>
	// "yes" <nil>
	// "" budget used up: 90 left, again in 1h0m0s
}
