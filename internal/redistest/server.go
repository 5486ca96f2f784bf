package redistest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is a redis-server process (or a Sentinel). Its data outlives the
// process, so Kill and Restart are a crash and a comeback. Methods that control
// the process must not be called concurrently.
type Server struct {
	t        testing.TB // nil for a shared server
	dir      string     // configuration, data, log and socket
	conf     map[string][]string
	tcp      bool
	sentinel bool
	certs    *certs
	proxied  bool
	port     int // 0: unix socket only
	tlsPort  int
	proc     *process

	// Proxy stands before the server if it was started with Proxied. Addr and
	// Client go around it.
	Proxy *Proxy
}

// Option changes a server's configuration before it starts.
type Option func(*Server)

// Set makes key's lines in the configuration file exactly those of values, one
// line a value: Set("user", "default off", "app on >secret ~app:* +get").
func Set(key string, values ...string) Option {
	return func(s *Server) { s.conf[key] = values }
}

// Add adds a line for key to the configuration file.
func Add(key, value string) Option {
	return func(s *Server) { s.conf[key] = append(slices.Clone(s.conf[key]), value) }
}

// AOF turns on the append-only file, with fsync "always", "everysec" or "no".
func AOF(fsync string) Option {
	return func(s *Server) {
		Set("appendonly", "yes")(s)
		Set("appendfsync", fsync)(s)
	}
}

// RDB turns on snapshots: RDB("1 100") writes one a second after 100 changes.
func RDB(save string) Option { return Set("save", save) }

// TCP makes the server listen on a free port of 127.0.0.1 instead of only on a
// unix socket.
func TCP() Option { return func(s *Server) { s.tcp = true } }

// unavailable says why no real server can run, or nil.
func unavailable() error {
	_, err := findBinary()
	return err
}

func findBinary() (string, error) {
	name := os.Getenv("REDIS_SERVER")
	if name == "" {
		name = "redis-server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("needs redis-server 6.2 or later: %w; install it (Debian, Ubuntu: apt-get install redis-server; "+
			"macOS: brew install redis) or set REDIS_SERVER to its path", err)
	}
	return path, nil
}

// need skips t if no real server can run, or fails it if REDISTEST=all.
func need(t testing.TB) {
	t.Helper()
	all := os.Getenv("REDISTEST") == "all"
	err := unavailable()
	switch {
	case err != nil && all:
		t.Fatalf("redistest: %v (REDISTEST=all allows no skip)", err)
	case err != nil:
		t.Skipf("redistest: %v", err)
	case testing.Short() && !all:
		t.Skip("redistest: -short runs on miniredis only")
	}
}

// Start runs a redis-server of the test's own, without persistence unless an
// option says otherwise, and stops it at the end. If the test failed the end of
// the server's log is logged.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	need(t)
	s, err := launch(opts...)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	s.adopt(t)
	return s
}

// adopt makes s the test's to stop.
func (s *Server) adopt(t testing.TB) {
	s.t = t
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of the redis-server at %s:\n%s", s.Addr(), s.LogTail())
		}
		s.remove()
	})
	if s.proxied {
		s.Proxy = NewProxy(t, s.Network(), s.Addr())
	}
}

// launch starts a server that the caller must remove.
func launch(opts ...Option) (*Server, error) {
	// Not t.TempDir: a unix socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, conf: map[string][]string{
		"save":       {`""`},
		"appendonly": {"no"},
		"bind":       {"127.0.0.1"},
	}}
	for _, o := range opts {
		o(s)
	}
	for range 3 { // another process may take a free port first
		if err = s.configure(); err != nil {
			break
		}
		if err = s.run(); err == nil {
			return s, nil
		}
		if !s.tcp && s.certs == nil {
			break
		}
	}
	err = fmt.Errorf("start redis-server: %w\n%s", err, s.LogTail())
	s.remove()
	return nil, err
}

// configure chooses ports and writes the configuration file.
func (s *Server) configure() error {
	var b strings.Builder
	if s.tcp {
		var err error
		if s.port, err = freePort(); err != nil {
			return err
		}
	}
	fmt.Fprintf(&b, "dir %q\nport %d\n", s.dir, s.port)
	if s.certs != nil {
		if err := s.configureTLS(&b); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.conf)) {
		if s.sentinel && (key == "save" || key == "appendonly") {
			continue // a Sentinel knows neither
		}
		for _, value := range s.conf[key] {
			fmt.Fprintf(&b, "%s %s\n", key, value)
		}
	}
	if !s.sentinel {
		fmt.Fprintf(&b, "unixsocket %q\n", s.socket())
	}
	return os.WriteFile(s.path("redis.conf"), []byte(b.String()), 0o600)
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }
func (s *Server) socket() string          { return s.path("s") }

// freePort finds a port of 127.0.0.1 that is free now, as is the one 10000 above,
// which is a cluster node's bus. It takes low ports that the kernel does not give
// to clients, so that a killed server finds its own again.
func freePort() (int, error) {
	for range 100 {
		port := 11000 + rand.IntN(11000)
		if isFree(port) && isFree(port+10000) {
			return port, nil
		}
	}
	return 0, errors.New("no free port between 11000 and 22000")
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func (s *Server) run() error {
	bin, err := findBinary()
	if err != nil {
		return err
	}
	args := []string{s.path("redis.conf")}
	if s.sentinel {
		args = append(args, "--sentinel")
	}
	if s.proc, err = startProcess(exec.Command(bin, args...), s.path("log")); err != nil {
		return err
	}
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := s.ping()
		if err == nil {
			return nil
		}
		if s.proc.exited() {
			return errors.New("it exited at once")
		}
		if time.Now().After(deadline) {
			s.Kill()
			return fmt.Errorf("not ready after 15 s: %w", err)
		}
		time.Sleep(3 * time.Millisecond)
	}
}

// ping succeeds once the server serves: LOADING is not yet, NOAUTH is.
func (s *Server) ping() error {
	network, addr := "unix", s.socket()
	if s.sentinel {
		network, addr = "tcp", s.Addr()
	}
	c, err := net.DialTimeout(network, addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return err
	}
	reply := make([]byte, 64)
	n, err := c.Read(reply)
	if err != nil {
		return err
	}
	if got := string(reply[:n]); !strings.HasPrefix(got, "+PONG") && !strings.HasPrefix(got, "-NOAUTH") {
		return errors.New(strings.TrimSpace(got))
	}
	return nil
}

// Addr returns "127.0.0.1:port" with TCP or TLS, and else the path of the unix
// socket, which go-redis takes as an address as well.
func (s *Server) Addr() string {
	switch {
	case s.tlsPort != 0:
		return "127.0.0.1:" + strconv.Itoa(s.tlsPort)
	case s.port != 0:
		return "127.0.0.1:" + strconv.Itoa(s.port)
	}
	return s.socket()
}

// Network returns the network of Addr: "tcp" or "unix".
func (s *Server) Network() string {
	if s.port == 0 && s.tlsPort == 0 {
		return "unix"
	}
	return "tcp"
}

// Port returns the TCP port without TLS, or 0.
func (s *Server) Port() int { return s.port }

// Pid returns the process id of the server's last start.
func (s *Server) Pid() int { return s.proc.cmd.Process.Pid }

// Client returns a client for s, with change applied to its options. Count knows
// it, and the test closes it. The client keeps go-redis' retries and timeouts
// unless change sets them.
func (s *Server) Client(change ...func(*redis.Options)) *redis.Client {
	s.t.Helper()
	return s.newClient(s.t, change)
}

func (s *Server) newClient(t testing.TB, change []func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: s.Addr()}
	if s.certs != nil {
		o.TLSConfig = s.TLSConfig()
	}
	return newClient(t, o, func(o *redis.Options) {
		for _, f := range change {
			if f != nil {
				f(o)
			}
		}
	})
}

// Pause stops the process where it is (SIGSTOP): connections stay open, the
// kernel still accepts new ones, nothing answers.
func (s *Server) Pause() {
	s.t.Helper()
	if err := s.proc.pause(); err != nil {
		s.t.Fatalf("redistest: pause: %v", err)
	}
}

// Resume lets a paused process go on.
func (s *Server) Resume() {
	s.t.Helper()
	if err := s.proc.resume(); err != nil {
		s.t.Fatalf("redistest: resume: %v", err)
	}
}

// Kill ends the process as a crash does (SIGKILL) and waits until it is gone.
func (s *Server) Kill() { s.proc.kill() }

// Stop ends the process as an orderly shutdown does (SIGTERM), and kills it if it
// takes more than two seconds.
func (s *Server) Stop() { s.proc.stop() }

// Restart starts the server again on the same addresses and data, after stopping
// it if it still runs.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	if err := s.run(); err != nil {
		s.t.Fatalf("redistest: restart: %v\n%s", err, s.LogTail())
	}
}

// AwaitReplica returns when a replica acknowledges what is written to s. That it
// is connected is not enough: until its first acknowledgement, which may take it
// a second, it gets no writes. Nor is one write, which may have been in the snapshot
// that it was given: one that follows an acknowledged one was not.
func (s *Server) AwaitReplica() {
	s.t.Helper()
	ctx, cancel := setupContext()
	defer cancel()
	rdb := newSetupClient(s)
	defer rdb.Close()
	inRow := 0
	if err := pollAll(ctx, "a replica to acknowledge two writes", []*redis.Client{rdb}, func(rdb *redis.Client) bool {
		acked := redis.NewIntCmd(ctx, "wait", 1, 100)
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, "redistest:await", 1, 0)
			p.Del(ctx, "redistest:await")
			return p.Process(ctx, acked)
		})
		if inRow++; err != nil || acked.Val() == 0 {
			inRow = 0
		}
		return inRow == 2
	}); err != nil {
		s.t.Fatalf("redistest: %v", err)
	}
}

// LogTail returns the last 4 kB of the server's log.
func (s *Server) LogTail() string {
	b, err := os.ReadFile(s.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

// remove ends the process and deletes its files.
func (s *Server) remove() {
	if s.proc != nil {
		s.proc.stop()
	}
	os.RemoveAll(s.dir)
}
