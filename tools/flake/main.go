// Command flake runs tests many times, on a quiet machine and on a busy one, and
// tells which failed how often and which are slow. At the root of the repository:
//
//	go run -C tools ./flake                                # all of the main module, 30 runs
//	go run -C tools ./flake -n 5 -run TestLogout ./session
//	go run -C tools ./flake -n 3 -forms race,busy+noredis
//
// A form is how the tests are run, its parts joined by "+":
//
//	quiet    with nothing beside them
//	busy     with a busy loop beside them for each core; flake runs and ends the loops
//	one      with GOMAXPROCS=1
//	race     under the race detector
//	noredis  without a redis-server
//
// The forms take turns. Each run has its own seed for -shuffle, which is printed;
// -seed repeats them. It exits with 1 if a test failed, and with 2 if flake could not
// run. Interrupted, it reports on the runs that have ended.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// config is what the command line says.
type config struct {
	dir      string
	n        int
	forms    []form
	seed     int64
	run      string
	timeout  time.Duration
	top      int
	packages []string
}

// form is one way to run the tests.
type form struct {
	name                     string
	busy, one, race, noRedis bool
}

func parseForm(name string) (f form, err error) {
	f.name = name
	for part := range strings.SplitSeq(name, "+") {
		switch part {
		case "quiet":
		case "busy":
			f.busy = true
		case "one":
			f.one = true
		case "race":
			f.race = true
		case "noredis":
			f.noRedis = true
		default:
			return f, fmt.Errorf("%q is no form; want quiet, busy, one, race, noredis, or some of them joined by +", part)
		}
	}
	return f, nil
}

// args returns the arguments of the go command.
func (f form) args(c *config, seed int64) []string {
	args := []string{"test", "-json", "-count=1", fmt.Sprintf("-shuffle=%d", seed), "-timeout=" + c.timeout.String()}
	if f.race {
		args = append(args, "-race")
	}
	if c.run != "" {
		args = append(args, "-run="+c.run)
	}
	return append(args, c.packages...)
}

// env returns what the form adds to the environment.
func (f form) env() (env []string) {
	if f.one {
		env = append(env, "GOMAXPROCS=1")
	}
	if f.noRedis {
		env = append(env, "REDIS_SERVER=/nonexistent/redis-server", "REDISTEST=")
	}
	return env
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second interrupt ends flake at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func parse(args []string, stderr io.Writer) (*config, error) {
	c := new(config)
	flags := flag.NewFlagSet("flake", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.dir, "dir", "..", "where to run go test, from the directory of tools")
	flags.IntVar(&c.n, "n", 10, "runs of each form, 1 or more")
	forms := flags.String("forms", "quiet,busy,one", "forms, joined by commas: quiet, busy, one, race, noredis, and such as busy+race")
	flags.Int64Var(&c.seed, "seed", 0, "seed of the first run's order; the others follow; 0 takes one from the clock")
	flags.StringVar(&c.run, "run", "", "as go test's -run")
	flags.DurationVar(&c.timeout, "timeout", 10*time.Minute, "as go test's -timeout: for each package")
	flags.IntVar(&c.top, "top", 10, "how many slow packages and tests to print")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if c.n < 1 {
		return nil, fmt.Errorf("-n is %d; want 1 or more", c.n)
	}
	for name := range strings.SplitSeq(*forms, ",") {
		f, err := parseForm(name)
		if err != nil {
			return nil, fmt.Errorf("-forms: %w", err)
		}
		c.forms = append(c.forms, f)
	}
	if c.seed == 0 {
		c.seed = time.Now().Unix()
	}
	if c.packages = flags.Args(); len(c.packages) == 0 {
		c.packages = []string{"./..."}
	}
	return c, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, err := parse(args, stderr)
	if err == flag.ErrHelp {
		return 0
	}
	if err == nil {
		err = c.build(ctx, stderr)
	}
	var all *report
	if err == nil {
		all, err = c.runAll(ctx, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "flake:", err)
		return 2
	}
	all.print(stdout, c.top)
	if all.red() > 0 {
		return 1
	}
	return 0
}

// build compiles what the runs need, so that no run's time has the compiler in it.
func (c *config) build(ctx context.Context, stderr io.Writer) error {
	for _, race := range []bool{false, true} {
		if !slices.ContainsFunc(c.forms, func(f form) bool { return f.race == race }) {
			continue
		}
		args := []string{"test", "-run=^$"}
		if race {
			args = append(args, "-race")
		}
		cmd := c.command(ctx, append(args, c.packages...))
		out, err := cmd.CombinedOutput()
		if err != nil {
			stderr.Write(out)
			return fmt.Errorf("go %s: %w", strings.Join(cmd.Args[1:], " "), err)
		}
	}
	return nil
}

// runAll runs every form n times, in turns.
func (c *config) runAll(ctx context.Context, stdout io.Writer) (*report, error) {
	logs, err := os.MkdirTemp("", "flake")
	if err != nil {
		return nil, err
	}
	total := c.n * len(c.forms)
	fmt.Fprintf(stdout, "%d runs of go test %s, %d cores, output of red runs in %s\n",
		total, strings.Join(c.packages, " "), runtime.NumCPU(), logs)
	all := new(report)
	for i := range total {
		f := c.forms[i%len(c.forms)]
		seed := c.seed + int64(i)
		r, err := c.runOnce(ctx, f, seed)
		if ctx.Err() != nil {
			fmt.Fprintf(stdout, "interrupted in run %d\n", i+1)
			break
		}
		if err != nil {
			return nil, err
		}
		all.runs = append(all.runs, r)
		verdict := "ok"
		if r.red() {
			verdict = "FAILED " + strings.Join(r.names(), " ")
			name := filepath.Join(logs, fmt.Sprintf("run%d.txt", i+1))
			if err := os.WriteFile(name, []byte(r.text.String()), 0o644); err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(stdout, "run %*d  %-*s  seed %d  %6.1f s  %s\n", len(fmt.Sprint(total)), i+1, longestName(c.forms), f.name, seed, r.took.Seconds(), verdict)
	}
	if all.red() == 0 {
		os.RemoveAll(logs)
	}
	return all, nil
}

func longestName(forms []form) (n int) {
	for _, f := range forms {
		n = max(n, len(f.name))
	}
	return n
}

// runOnce runs go test once and reads what it says.
func (c *config) runOnce(ctx context.Context, f form, seed int64) (*result, error) {
	if f.busy {
		defer spin(runtime.NumCPU())()
	}
	cmd := c.command(ctx, f.args(c, seed))
	cmd.Env = append(cmd.Environ(), f.env()...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout // what is no JSON is output of the go command itself
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := newResult(f, seed)
	readErr := r.read(out)
	err = cmd.Wait()
	r.took = time.Since(start)
	if readErr != nil {
		return nil, readErr
	}
	r.finish(err)
	return r, nil
}
