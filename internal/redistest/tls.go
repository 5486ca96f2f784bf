package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"time"
)

// TLS makes the server listen on a free port of 127.0.0.1 with TLS, under a
// certificate of an authority that exists for this server only. clients is
// Redis' tls-auth-clients: "yes" demands a certificate of the client, "optional"
// and "no" don't. Server.Client presents one.
func TLS(clients string) Option {
	return func(s *Server) {
		s.certs = &certs{}
		s.conf["tls-auth-clients"] = []string{clients}
	}
}

// certs is what a server with TLS and its clients need.
type certs struct {
	pool   *x509.CertPool
	client tls.Certificate
}

// TLSConfig returns a configuration that trusts the server and presents a client
// certificate, for the caller to change. It is nil without the option TLS.
func (s *Server) TLSConfig() *tls.Config {
	if s.certs == nil {
		return nil
	}
	return &tls.Config{
		RootCAs:      s.certs.pool,
		Certificates: []tls.Certificate{s.certs.client},
		ServerName:   "localhost",
		MinVersion:   tls.VersionTLS12,
	}
}

// configureTLS chooses the port, makes the certificates and writes the lines of
// the configuration that name them.
func (s *Server) configureTLS(w io.Writer) (err error) {
	if s.tlsPort, err = freePort(); err != nil {
		return err
	}
	authority, authorityKey, err := issue(nil, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "redistest authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	if err != nil {
		return err
	}
	server, serverKey, err := issue(authority, authorityKey, &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		return err
	}
	client, clientKey, err := issue(authority, authorityKey, &x509.Certificate{
		Subject: pkix.Name{CommonName: "client"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	s.certs.pool = x509.NewCertPool()
	s.certs.pool.AddCert(authority)
	s.certs.client = tls.Certificate{Certificate: [][]byte{client.Raw}, PrivateKey: clientKey}

	key, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "tls-port %d\ntls-cert-file %q\ntls-key-file %q\ntls-ca-cert-file %q\n",
		s.tlsPort, s.path("server.crt"), s.path("server.key"), s.path("ca.crt"))
	return errors.Join(err,
		writePEM(s.path("ca.crt"), "CERTIFICATE", authority.Raw),
		writePEM(s.path("server.crt"), "CERTIFICATE", server.Raw),
		writePEM(s.path("server.key"), "PRIVATE KEY", key))
}

// issue makes a certificate and its key, signed by the given authority, or by
// itself if that is nil.
func issue(authority *x509.Certificate, authorityKey *ecdsa.PrivateKey, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if authority == nil {
		authority, authorityKey = c, key
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, authority, &key.PublicKey, authorityKey)
	if err != nil {
		return nil, nil, err
	}
	issued, err := x509.ParseCertificate(der)
	return issued, key, err
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
