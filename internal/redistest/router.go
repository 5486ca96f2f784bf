package redistest

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Router stands before servers and sends each command to the one that its first key's
// hash tag belongs to, scripts too, whatever other keys they have, as Envoy and twemproxy
// do. It refuses HELLO and SUBSCRIBE. It returns the client's options.
func Router(t testing.TB, servers ...*Server) *redis.Options {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("redistest: router: %v", err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go route(c, servers)
		}
	}()
	return &redis.Options{Addr: ln.Addr().String(), Protocol: 2, DisableIdentity: true}
}

func route(client net.Conn, servers []*Server) {
	defer client.Close()
	in := bufio.NewReader(client)
	to := make([]net.Conn, len(servers))
	from := make([]*bufio.Reader, len(servers))
	for i, s := range servers {
		c, err := net.Dial(s.Network(), s.Addr())
		if err != nil {
			return
		}
		defer c.Close()
		to[i], from[i] = c, bufio.NewReader(c)
	}
	for {
		raw, args, err := readValue(in)
		if err != nil || len(args) == 0 {
			return
		}
		key := ""
		switch name := strings.ToLower(args[0]); name {
		case "hello", "client", "subscribe":
			if _, err := fmt.Fprintf(client, "-ERR unsupported command '%s'\r\n", name); err != nil {
				return
			}
			continue
		case "eval", "evalsha":
			key = args[3]
		default:
			if len(args) > 1 {
				key = args[1]
			}
		}
		if _, rest, ok := strings.Cut(key, "{"); ok {
			if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
				key = tag
			}
		}
		h := fnv.New32a()
		io.WriteString(h, key)
		at := int(h.Sum32() % uint32(len(servers)))
		if _, err := to[at].Write(raw); err != nil {
			return
		}
		reply, _, err := readValue(from[at])
		if err != nil {
			return
		}
		if _, err := client.Write(reply); err != nil {
			return
		}
	}
}

// readValue reads a value of RESP2, and returns its bytes and the strings in it.
func readValue(r *bufio.Reader) (raw []byte, parts []string, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, nil, err
	}
	raw = []byte(line)
	switch n, _ := strconv.Atoi(strings.TrimSpace(line[1:])); line[0] {
	case '$':
		if n < 0 {
			break
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, nil, err
		}
		return append(raw, b...), []string{string(b[:n])}, nil
	case '*':
		for range n {
			more, s, err := readValue(r)
			if err != nil {
				return nil, nil, err
			}
			raw, parts = append(raw, more...), append(parts, s...)
		}
	}
	return raw, parts, nil
}
