package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// server is a redis-server process of the program's own, without persistence, on
// a free port of 127.0.0.1.
type server struct {
	addr  string
	cmd   *exec.Cmd
	gone  chan struct{} // closed once the process has ended
	dir   string
	admin *redis.Client // the harness's, never a subject's
}

// startServer runs redis-server, or the program that REDIS_SERVER names.
func startServer(extra ...string) (*server, error) {
	name := os.Getenv("REDIS_SERVER")
	if name == "" {
		name = "redis-server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("needs redis-server 6.2 or later (or REDIS_SERVER, its path): %w", err)
	}
	dir, err := os.MkdirTemp("", "redporch-bench")
	if err != nil {
		return nil, err
	}
	for range 3 { // another process may take the free port first
		var s *server
		if s, err = launch(path, dir, extra); err == nil {
			return s, nil
		}
	}
	os.RemoveAll(dir)
	return nil, err
}

func launch(path, dir string, extra []string) (*server, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"--port", strconv.Itoa(addr.Port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir, "--tcp-backlog", "511"}
	s := &server{addr: addr.String(), cmd: exec.Command(path, append(args, extra...)...), gone: make(chan struct{}), dir: dir}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.cmd.Wait() // how it ended is in its log
		close(s.gone)
	}()
	s.admin = redis.NewClient(&redis.Options{Addr: s.addr, PoolSize: 1, MaxRetries: -1})
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-s.gone:
			return nil, errors.New("redis-server ended at once: " + s.logTail())
		default:
		}
		if s.admin.Ping(context.Background()).Err() == nil {
			return s, nil
		}
	}
	s.cmd.Process.Kill()
	<-s.gone
	return nil, errors.New("redis-server does not answer: " + s.logTail())
}

// freePort finds a free port of 127.0.0.1 below 55,000, since a cluster node's
// bus listens 10,000 above.
func freePort() (*net.TCPAddr, error) {
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addr := l.Addr().(*net.TCPAddr)
		l.Close()
		if addr.Port < 55_000 {
			return addr, nil
		}
	}
	return nil, errors.New("no free port below 55000")
}

func (s *server) logTail() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(b[max(0, len(b)-500):])
}

func (s *server) stop() {
	s.admin.Close()
	s.cmd.Process.Kill() // nothing in it is worth a farewell
	<-s.gone
	os.RemoveAll(s.dir)
}

// serverStats are totals since the server's start.
type serverStats struct {
	commands float64 // executed, those inside of scripts and the harness's included
	cpu      float64 // seconds, user and system
	memory   float64 // bytes in use
	version  string
}

// statsCommands is how many commands one reading of the statistics executes.
const statsCommands = 1

func (s *server) stats(ctx context.Context) (st serverStats, err error) {
	text, err := s.admin.Info(ctx, "all").Result()
	if err != nil {
		return st, fmt.Errorf("read the server's statistics: %w", err)
	}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		f, _ := strconv.ParseFloat(v, 64)
		switch k {
		case "total_commands_processed":
			st.commands = f
		case "used_cpu_user", "used_cpu_sys":
			st.cpu += f
		case "used_memory":
			st.memory = f
		case "redis_version":
			st.version = v
		}
	}
	return st, nil
}
